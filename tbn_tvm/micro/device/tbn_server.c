/* Answers the host over the UART: one request, one reply. tbn_tvm/micro/protocol.py is the other
 * end and describes the frames.
 *
 * Every request may arrive twice: reading and writing are idempotent, and a repeated RUN gets the
 * reply of the first. Of a damaged frame the host is told at once, so that it asks again. Waiting
 * for a request has no limit; within a frame every wait has one. */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "tbn_board.h"
#include "tbn_crc32.h"
#include "tbn_model.h"

#define MAGIC 0xA7u
#define HEADER 5u /* magic, kind, sequence, length, check */
#define MAX_PAYLOAD 255u
#define VERSION 3u

/* A frame whose next byte is not there by then has lost one; far beyond what a host's drivers
 * need between two bytes. */
#define SILENCE (TBN_TIMER_HZ / 10u)

enum { HELLO = 1, WRITE = 2, RUN = 3, READ = 4, STACK = 5, FAULT = 0x7E, ERROR = 0x7F, REPLY = 0x80 };
enum { BAD_REQUEST = 1, BAD_RANGE = 2, BAD_INPUT = 3, DAMAGED = 4 };

static uint8_t frame[HEADER + MAX_PAYLOAD + 4u];
static uint64_t run_ticks;
static int32_t run_sequence = -1;

static uint32_t get32(const uint8_t *at)
{
  return (uint32_t)at[0] | (uint32_t)at[1] << 8 | (uint32_t)at[2] << 16 | (uint32_t)at[3] << 24;
}

static void put32(uint8_t *at, uint32_t value)
{
  for (uint32_t i = 0; i < 4u; ++i) at[i] = (uint8_t)(value >> (8u * i));
}

/* Of kind, sequence and length: a damaged length would have the reader wait for what never comes.
 * The factors tell bytes that were shifted by one that got lost. */
static uint8_t header_check(void)
{
  return (uint8_t)(0x5Au + frame[1] + 3u * frame[2] + 5u * frame[3]);
}

/* Send the first `size` payload bytes already in `frame`. */
static void send(uint8_t kind, uint8_t sequence, uint32_t size)
{
  frame[0] = MAGIC;
  frame[1] = kind;
  frame[2] = sequence;
  frame[3] = (uint8_t)size;
  frame[4] = header_check();
  put32(frame + HEADER + size, tbn_crc32(0u, frame + 1, HEADER - 1u + size));
  for (uint32_t i = 0; i < HEADER + size + 4u; ++i) tbn_uart_write(frame[i]);
}

static void send_error(uint8_t sequence, uint8_t code)
{
  frame[HEADER] = code;
  send(ERROR, sequence, 1u);
}

/* The next byte within a frame, or -1 where it does not come. */
static int32_t next_byte(void)
{
  uint64_t start = tbn_timer_ticks();
  int32_t byte;
  do {
    byte = tbn_uart_poll();
  } while (byte < 0 && tbn_timer_ticks() - start < SILENCE);
  return byte;
}

/* Remove what stands before the next possible start of a frame; bytes that are left. */
static uint32_t skip(uint32_t have)
{
  uint32_t start = 0u;
  while (start < have && frame[start] != MAGIC) start++;
  for (uint32_t i = start; i < have; ++i) frame[i - start] = frame[i];
  return have - start;
}

/* Wait for a whole, undamaged frame; its payload's size.
 *
 * What turns out to be damaged may contain the start of the next frame, or all of it: a lost byte
 * makes a frame reach into the one behind it. */
static uint32_t receive(void)
{
  uint32_t have = 0u;
  for (;;) {
    int damaged = have >= HEADER && frame[4] != header_check();
    if (!damaged && have >= HEADER && have >= HEADER + frame[3] + 4u) {
      uint32_t size = frame[3];
      if (get32(frame + HEADER + size) == tbn_crc32(0u, frame + 1, HEADER - 1u + size)) {
        return size;
      }
      damaged = 1;
    }
    if (!damaged) {
      int32_t byte = have == 0u ? (int32_t)tbn_uart_read() : next_byte();
      if (byte >= 0) {
        frame[have] = (uint8_t)byte;
        have = have == 0u ? skip(1u) : have + 1u;
        continue;
      }
    }
    frame[0] = 0u;
    have = skip(have);
    if (have == 0u) send_error(0u, DAMAGED);
  }
}

static void hello(uint8_t sequence)
{
  uint8_t *at = frame + HEADER;
  uint32_t inputs = tbn_model_inputs(), outputs = tbn_model_outputs(), bytes;
  *at++ = VERSION;
  memcpy(at, tbn_model_digest, 8u);
  at += 8;
  *at++ = (uint8_t)inputs;
  *at++ = (uint8_t)outputs;
  for (uint32_t i = 0; i < inputs; ++i, at += 4) {
    (void)tbn_model_input(i, &bytes);
    put32(at, bytes);
  }
  for (uint32_t i = 0; i < outputs; ++i, at += 4) {
    (void)tbn_model_output(i, &bytes);
    put32(at, bytes);
  }
  run_sequence = -1;
  send(HELLO | REPLY, sequence, (uint32_t)(at - frame) - HEADER);
}

/* Payload: index, offset (4 bytes), data. */
static void write_input(uint8_t sequence, uint32_t size)
{
  uint32_t bytes = 0u;
  uint8_t *input = size >= 5u ? tbn_model_input(frame[HEADER], &bytes) : NULL;
  uint32_t offset = size >= 5u ? get32(frame + HEADER + 1) : 0u;
  if (input == NULL || offset > bytes || size - 5u > bytes - offset) {
    send_error(sequence, BAD_RANGE);
    return;
  }
  memcpy(input + offset, frame + HEADER + 5, size - 5u);
  run_sequence = -1; /* the next RUN is a new one, even if 256 requests gave it the same number */
  send(WRITE | REPLY, sequence, 0u);
}

/* Payload: the CRC of each input. Reply: ticks (8 bytes), the CRC of each output. */
static void run(uint8_t sequence, uint32_t size)
{
  uint32_t inputs = tbn_model_inputs(), outputs = tbn_model_outputs(), bytes;
  if (run_sequence != (int32_t)sequence) {
    if (size != 4u * inputs) {
      send_error(sequence, BAD_REQUEST);
      return;
    }
    for (uint32_t i = 0; i < inputs; ++i) {
      const uint8_t *input = tbn_model_input(i, &bytes);
      if (tbn_crc32(0u, input, bytes) != get32(frame + HEADER + 4u * i)) {
        send_error(sequence, BAD_INPUT);
        return;
      }
    }
    uint64_t start = tbn_timer_ticks();
    tbn_model_run();
    run_ticks = tbn_timer_ticks() - start;
    run_sequence = sequence;
  }
  put32(frame + HEADER, (uint32_t)run_ticks);
  put32(frame + HEADER + 4, (uint32_t)(run_ticks >> 32));
  for (uint32_t i = 0; i < outputs; ++i) {
    const uint8_t *output = tbn_model_output(i, &bytes);
    put32(frame + HEADER + 8u + 4u * i, tbn_crc32(0u, output, bytes));
  }
  send(RUN | REPLY, sequence, 8u + 4u * outputs);
}

/* Payload: index, offset (4 bytes), count. Reply: the bytes. */
static void read_output(uint8_t sequence, uint32_t size)
{
  uint32_t bytes = 0u;
  const uint8_t *output = size == 6u ? tbn_model_output(frame[HEADER], &bytes) : NULL;
  uint32_t offset = get32(frame + HEADER + 1), count = frame[HEADER + 5];
  if (output == NULL || offset > bytes || count > bytes - offset) {
    send_error(sequence, BAD_RANGE);
    return;
  }
  memcpy(frame + HEADER, output + offset, count);
  send(READ | REPLY, sequence, count);
}

/* Reply: bytes of stack ever used (4 bytes). */
static void stack(uint8_t sequence)
{
  put32(frame + HEADER, tbn_stack_used());
  send(STACK | REPLY, sequence, 4u);
}

void tbn_fault(uint32_t pc, uint32_t lr, uint32_t status)
{
  for (;;) { /* any request is answered with it: the line may have damaged it */
    put32(frame + HEADER, pc);
    put32(frame + HEADER + 4, lr);
    put32(frame + HEADER + 8, status);
    send(FAULT, 0u, 12u);
    (void)receive();
  }
}

int main(void)
{
  tbn_uart_init();
  tbn_timer_start();
  for (;;) {
    uint32_t size = receive();
    uint8_t sequence = frame[2];
    switch (frame[1]) {
      case HELLO: hello(sequence); break;
      case WRITE: write_input(sequence, size); break;
      case RUN: run(sequence, size); break;
      case READ: read_output(sequence, size); break;
      case STACK: stack(sequence); break;
      default: send_error(sequence, BAD_REQUEST); break;
    }
  }
}
