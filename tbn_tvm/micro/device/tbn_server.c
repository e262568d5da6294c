/* Answers the host over the UART: one request, one reply. tbn_tvm/micro/protocol.py is the other
 * end and describes the frames.
 *
 * Every request may arrive twice: reading and writing are idempotent, and a repeated RUN gets the
 * reply of the first. Damaged frames are dropped in silence; the host asks again. */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "tbn_board.h"
#include "tbn_crc32.h"
#include "tbn_model.h"

#define MAGIC 0xA7u
#define HEADER 5u /* magic, kind, sequence, length (two bytes, little endian) */
#define MAX_PAYLOAD 256u
#define VERSION 2u

enum { HELLO = 1, WRITE = 2, RUN = 3, READ = 4, STACK = 5, FAULT = 0x7E, ERROR = 0x7F, REPLY = 0x80 };
enum { BAD_REQUEST = 1, BAD_RANGE = 2, BAD_INPUT = 3 };

static uint8_t frame[HEADER + MAX_PAYLOAD + 4u];
static uint8_t run_reply[MAX_PAYLOAD];
static uint32_t run_reply_size;
static int32_t run_sequence = -1;

static uint32_t get32(const uint8_t *at)
{
  return (uint32_t)at[0] | (uint32_t)at[1] << 8 | (uint32_t)at[2] << 16 | (uint32_t)at[3] << 24;
}

static void put32(uint8_t *at, uint32_t value)
{
  for (uint32_t i = 0; i < 4u; ++i) at[i] = (uint8_t)(value >> (8u * i));
}

/* Send the first `size` payload bytes already in `frame`. */
static void send(uint8_t kind, uint8_t sequence, uint32_t size)
{
  frame[0] = MAGIC;
  frame[1] = kind;
  frame[2] = sequence;
  frame[3] = (uint8_t)size;
  frame[4] = (uint8_t)(size >> 8);
  put32(frame + HEADER + size, tbn_crc32(0u, frame + 1, HEADER - 1u + size));
  for (uint32_t i = 0; i < HEADER + size + 4u; ++i) tbn_uart_write(frame[i]);
}

static void send_error(uint8_t sequence, uint8_t code)
{
  frame[HEADER] = code;
  send(ERROR, sequence, 1u);
}

/* Wait for a whole, undamaged frame; its payload's size. */
static uint32_t receive(void)
{
  for (;;) {
    do {
      frame[0] = tbn_uart_read();
    } while (frame[0] != MAGIC);
    for (uint32_t i = 1; i < HEADER; ++i) frame[i] = tbn_uart_read();
    uint32_t size = (uint32_t)frame[3] | (uint32_t)frame[4] << 8;
    if (size > MAX_PAYLOAD) continue;
    for (uint32_t i = 0; i < size + 4u; ++i) frame[HEADER + i] = tbn_uart_read();
    if (get32(frame + HEADER + size) == tbn_crc32(0u, frame + 1, HEADER - 1u + size)) return size;
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
  if (run_sequence != (int32_t)sequence) {
    uint32_t inputs = tbn_model_inputs(), outputs = tbn_model_outputs(), bytes;
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
    uint64_t ticks = tbn_timer_ticks() - start;
    put32(run_reply, (uint32_t)ticks);
    put32(run_reply + 4, (uint32_t)(ticks >> 32));
    for (uint32_t i = 0; i < outputs; ++i) {
      const uint8_t *output = tbn_model_output(i, &bytes);
      put32(run_reply + 8u + 4u * i, tbn_crc32(0u, output, bytes));
    }
    run_reply_size = 8u + 4u * outputs;
    run_sequence = sequence;
  }
  memcpy(frame + HEADER, run_reply, run_reply_size);
  send(RUN | REPLY, sequence, run_reply_size);
}

/* Payload: index, offset (4 bytes), count (2 bytes). Reply: the bytes. */
static void read_output(uint8_t sequence, uint32_t size)
{
  uint32_t bytes = 0u;
  const uint8_t *output = size == 7u ? tbn_model_output(frame[HEADER], &bytes) : NULL;
  uint32_t offset = get32(frame + HEADER + 1);
  uint32_t count = (uint32_t)frame[HEADER + 5] | (uint32_t)frame[HEADER + 6] << 8;
  if (output == NULL || count > MAX_PAYLOAD || offset > bytes || count > bytes - offset) {
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
  put32(frame + HEADER, pc);
  put32(frame + HEADER + 4, lr);
  put32(frame + HEADER + 8, status);
  send(FAULT, 0u, 12u);
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
