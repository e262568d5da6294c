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
#include "tbn_fault.h"
#include "tbn_model.h"
#include "tbn_profile.h"

#define MAGIC 0xA7u
#define HEADER 5u /* magic, kind, sequence, length, check */
#define MAX_PAYLOAD 255u
#define VERSION 3u

/* A frame whose next byte is not there by then has lost one; far beyond what a host's drivers
 * need between two bytes. */
#define SILENCE (TBN_TIMER_HZ / 10u)

enum { HELLO = 1, WRITE = 2, RUN = 3, READ = 4, STACK = 5, TIMES = 6, RESULT = 7 };
enum { FAULT = 0x7E, ERROR = 0x7F, REPLY = 0x80 };
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

/* Run the model up to a step; whether that can be done. */
static int run_model(uint32_t steps)
{
#if defined(TBN_PROFILE)
  tbn_profile_end = steps;
#else
  if (steps != TBN_ALL_STEPS) return 0;
#endif
  tbn_model_run();
  return 1;
}

/* Payload: the most ticks it may take, by 1024 (4 bytes; 0: any number), how many steps (2 bytes),
 * the CRC of each input. Reply: ticks (8 bytes), the CRC of each output. */
static void run(uint8_t sequence, uint32_t size)
{
  uint32_t inputs = tbn_model_inputs(), outputs = tbn_model_outputs(), bytes;
  if (run_sequence != (int32_t)sequence) {
    if (size != 6u + 4u * inputs) {
      send_error(sequence, BAD_REQUEST);
      return;
    }
    for (uint32_t i = 0; i < inputs; ++i) {
      const uint8_t *input = tbn_model_input(i, &bytes);
      if (tbn_crc32(0u, input, bytes) != get32(frame + HEADER + 6u + 4u * i)) {
        send_error(sequence, BAD_INPUT);
        return;
      }
    }
    uint32_t steps = (uint32_t)frame[HEADER + 4] | (uint32_t)frame[HEADER + 5] << 8;
    tbn_timer_limit((uint64_t)get32(frame + HEADER) << 10);
    uint64_t start = tbn_timer_ticks();
    int ran = run_model(steps);
    run_ticks = tbn_timer_ticks() - start;
    tbn_timer_limit(0u);
    tbn_stack_check();
    if (!ran) {
      send_error(sequence, BAD_REQUEST);
      return;
    }
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

#if defined(TBN_PROFILE)
/* Payload: 0 for ticks, 1 for cycles; the first step (2 bytes). Reply: steps (2 bytes), what 64
 * times of taking the time take (4 bytes), the times before each step and behind the last. */
static void times(uint8_t sequence, uint32_t size)
{
  const uint32_t *from = frame[HEADER] == 0u ? tbn_profile_ticks : tbn_profile_cycles;
  uint32_t spare = tbn_profile_steps + 1u;
  uint32_t first = (uint32_t)frame[HEADER + 1] | (uint32_t)frame[HEADER + 2] << 8;
  if (size != 3u || first > tbn_profile_steps) {
    send_error(sequence, BAD_RANGE);
    return;
  }
  (void)tbn_profile_step(spare);
  uint32_t start = from[spare];
  for (uint32_t i = 0; i < 64u; ++i) (void)tbn_profile_step(spare);
  frame[HEADER] = (uint8_t)tbn_profile_steps;
  frame[HEADER + 1] = (uint8_t)(tbn_profile_steps >> 8);
  put32(frame + HEADER + 2, from[spare] - start);
  uint32_t count = 0u;
  for (; first + count < spare && count < (MAX_PAYLOAD - 6u) / 4u; ++count) {
    put32(frame + HEADER + 6u + 4u * count, from[first + count]);
  }
  send(TIMES | REPLY, sequence, 6u + 4u * count);
}

/* Payload: index (2 bytes), offset (4 bytes), count. Reply: the bytes. */
static void read_result(uint8_t sequence, uint32_t size)
{
  uint32_t bytes = 0u, index = (uint32_t)frame[HEADER] | (uint32_t)frame[HEADER + 1] << 8;
  const uint8_t *result = size == 7u ? tbn_profile_result(index, &bytes) : NULL;
  uint32_t offset = get32(frame + HEADER + 2), count = frame[HEADER + 6];
  if (result == NULL || offset > bytes || count > bytes - offset) {
    send_error(sequence, BAD_RANGE);
    return;
  }
  memcpy(frame + HEADER, result + offset, count);
  send(RESULT | REPLY, sequence, count);
}
#endif

/* Append a text and the byte that ends it. */
static uint8_t *put_text(uint8_t *at, const char *text)
{
  for (uint32_t i = 0; text != NULL && i < 80u && text[i] != 0; ++i) *at++ = (uint8_t)text[i];
  *at++ = 0u;
  return at;
}

/* Payload: cause, registers, where and what in text. Any later request is answered with it too: the
 * line may have damaged it. */
void tbn_report(uint8_t cause, const uint32_t *words, const char *where, const char *what)
{
  for (;;) {
    uint8_t *at = frame + HEADER;
    *at++ = cause;
    for (uint32_t i = 0; i < TBN_FAULT_WORDS; ++i, at += 4) put32(at, words[i]);
    at = put_text(put_text(at, where), what);
    send(FAULT, 0u, (uint32_t)(at - frame) - HEADER);
    (void)receive();
  }
}

void tbn_fault_entry(const uint32_t *frame, uint32_t exc_return)
{
  uint32_t words[TBN_FAULT_WORDS] = {0u};
  uint8_t cause = tbn_fault_collect(frame, exc_return, words);
  tbn_report(cause, words, NULL, NULL);
}

int main(void)
{
  tbn_uart_init();
  tbn_timer_start();
#if defined(TBN_PROFILE)
  tbn_profile_start();
#endif
  for (;;) {
    uint32_t size = receive();
    uint8_t sequence = frame[2];
    switch (frame[1]) {
      case HELLO: hello(sequence); break;
      case WRITE: write_input(sequence, size); break;
      case RUN: run(sequence, size); break;
      case READ: read_output(sequence, size); break;
      case STACK: stack(sequence); break;
#if defined(TBN_PROFILE)
      case TIMES: times(sequence, size); break;
      case RESULT: read_result(sequence, size); break;
#endif
      default: send_error(sequence, BAD_REQUEST); break;
    }
  }
}
