/* Answers the serial commands of MLPerf Tiny (mlcommons/tiny, benchmark/api): text that ends with
 * '%', in, and lines, out, the last of each reply m-ready.
 *
 * The buffer of `db` holds the inputs as the model takes them: each one's bytes, one input after the
 * other. A run overwrites its inputs, so each inference begins with a copy of the buffer, within the
 * time that is measured. */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "tbn_board.h"
#include "tbn_model.h"

#define COMMAND_SIZE 256u
#define DEFAULT_WARMUPS 10u
#define NONE 0xFFFFFFFFu

/* Inlined into one another, the functions below would take twice the flash. */
#define APART __attribute__((noinline))

#if TBN_TIMER_HZ <= 1000000
#error "microseconds need a timer faster than 1 MHz"
#endif

static char command[COMMAND_SIZE];
static uint32_t expected, loaded; /* bytes of the buffer: announced by db load, arrived since */

static APART void put(const char *text)
{
  while (*text != '\0') tbn_uart_write((uint8_t)*text++);
}

static APART void put_number(uint32_t number)
{
  char digits[11];
  uint32_t at = sizeof digits - 1u;
  digits[at] = '\0';
  do {
    digits[--at] = (char)('0' + number % 10u);
    number /= 10u;
  } while (number != 0u);
  put(digits + at);
}

/* `before`, a number, `after`. */
static APART void tell(const char *before, uint32_t number, const char *after)
{
  put(before);
  put_number(number);
  put(after);
}

static void put_hex(uint8_t byte)
{
  static const char digits[] = "0123456789abcdef";
  tbn_uart_write((uint8_t)digits[byte >> 4]);
  tbn_uart_write((uint8_t)digits[byte & 15u]);
}

/* Three decimals, as "%0.3f" gives them; magnitudes beyond 32 bits count as infinite. */
static APART void put_real(float real)
{
  if (real != real) {
    put("nan");
    return;
  }
  if (real < 0.0f) {
    put("-");
    real = -real;
  }
  if (real >= 4294967040.0f) {
    put("inf");
    return;
  }
  uint32_t whole = (uint32_t)real;
  uint32_t thousandths = (uint32_t)((real - (float)whole) * 1000.0f + 0.5f);
  if (thousandths == 1000u) {
    whole++;
    thousandths = 0u;
  }
  put_number(whole);
  put(thousandths < 10u ? ".00" : thousandths < 100u ? ".0" : ".");
  put_number(thousandths);
}

/* Microseconds since the start, modulo 2^32. Small cores have no division for 64 bits: ticks times
 * what one is worth, with 32 bits behind the point. */
static APART void lap(void)
{
  const uint32_t worth = (uint32_t)(4294967296000000u / TBN_TIMER_HZ);
  uint64_t ticks = tbn_timer_ticks();
  uint64_t low = (ticks & 0xFFFFFFFFu) * worth;
  tell("m-lap-us-", (uint32_t)(low >> 32) + (uint32_t)(ticks >> 32) * worth, "\r\n");
}

/* Wait for a command; 0 where it is longer than any. */
static APART int receive(void)
{
  uint32_t size = 0u;
  for (;;) {
    char byte = (char)tbn_uart_read();
    if (byte == '%') break;
    if (size < COMMAND_SIZE) command[size] = byte;
    if (size > 0u || (byte != '\r' && byte != '\n')) size++;
  }
  command[size < COMMAND_SIZE ? size : COMMAND_SIZE - 1u] = '\0';
  return size < COMMAND_SIZE;
}

/* The next word at *at, ended there; empty where there is none. */
static APART char *word(char **at)
{
  char *start = *at;
  while (*start == ' ') start++;
  char *end = start;
  while (*end != ' ' && *end != '\0') end++;
  *at = *end == '\0' ? end : end + 1;
  *end = '\0';
  return start;
}

/* A number of at most nine digits, or NONE. */
static APART uint32_t number_of(const char *text)
{
  uint32_t number = 0u, digits = 0u;
  for (; *text >= '0' && *text <= '9'; ++text, ++digits) {
    number = 10u * number + (uint32_t)(*text - '0');
  }
  return *text == '\0' && digits > 0u && digits < 10u ? number : NONE;
}

/* The value of a hexadecimal digit, or NONE. */
static APART uint32_t digit_of(char digit)
{
  if (digit >= '0' && digit <= '9') return (uint32_t)(digit - '0');
  if (digit >= 'a' && digit <= 'f') return (uint32_t)(digit - 'a') + 10u;
  if (digit >= 'A' && digit <= 'F') return (uint32_t)(digit - 'A') + 10u;
  return NONE;
}

static APART uint32_t input_bytes(void)
{
  uint32_t sum = 0u, bytes;
  for (uint32_t i = 0u; i < tbn_model_inputs(); ++i) {
    (void)tbn_model_input(i, &bytes);
    sum += bytes;
  }
  return sum;
}

static APART void infer_once(void)
{
  const uint8_t *from = tbn_model_buffer();
  uint32_t bytes;
  for (uint32_t i = 0u; i < tbn_model_inputs(); ++i) {
    uint8_t *input = tbn_model_input(i, &bytes);
    memcpy(input, from, bytes);
    from += bytes;
  }
  tbn_model_run();
}

static APART void results(void)
{
  put("m-results-[");
  for (uint32_t i = 0u; i < tbn_model_results(); ++i) {
    if (i > 0u) put(",");
    put_real(tbn_model_result(i));
  }
  put("]\r\n");
}

static APART void infer(char *rest)
{
  const char *first = word(&rest), *second = word(&rest);
  uint32_t count = *first == '\0' ? 1u : number_of(first);
  uint32_t warmups = *second == '\0' ? DEFAULT_WARMUPS : number_of(second);
  if (count == 0u || count == NONE) {
    put("e-[Inference iterations must be >0]\r\n");
    return;
  }
  if (warmups == NONE) {
    put("e-[Inference warmup must be >=0]\r\n");
    return;
  }
  tell("m-warmup-start-", warmups, "\r\n");
  for (uint32_t i = 0u; i < warmups; ++i) infer_once();
  put("m-warmup-done\r\n");
  tell("m-infer-start-", count, "\r\n");
  lap();
  for (uint32_t i = 0u; i < count; ++i) infer_once();
  lap();
  put("m-infer-done\r\n");
  results();
}

static APART void load(const char *size)
{
  uint32_t bytes = number_of(size);
  expected = loaded = 0u;
  if (*size == '\0') {
    put("e-[Command 'db load' requires the # of bytes]\r\n");
  } else if (bytes == 0u || bytes == NONE) {
    put("e-[Command 'db load' must be >0 bytes]\r\n");
  } else if (bytes > input_bytes()) {
    tell("e-[Supplied buffer size ", bytes, " exceeds maximum of ");
    tell("", input_bytes(), "]\r\n");
  } else {
    expected = bytes;
    tell("m-[Expecting ", bytes, " bytes]\r\n");
  }
}

/* Digits behind the last byte that was announced do not count. */
static APART void load_bytes(const char *digits)
{
  uint8_t *buffer = tbn_model_buffer();
  if (strlen(digits) % 2u != 0u) {
    put("e-[Insufficient number of hex digits]\r\n");
    return;
  }
  for (const char *at = digits; *at != '\0'; ++at) {
    if (digit_of(*at) == NONE) {
      const char shown[] = {*at, '\0'};
      put("e-[Invalid hex digit '");
      put(shown);
      put("']\r\n");
      return;
    }
  }
  if (loaded == expected) {
    put("e-[No bytes expected: 'db load N' first]\r\n");
    return;
  }
  for (; *digits != '\0' && loaded < expected; digits += 2) {
    buffer[loaded++] = (uint8_t)(digit_of(digits[0]) << 4 | digit_of(digits[1]));
  }
  if (loaded == expected) put("m-load-done\r\n");
}

static APART void print(void)
{
  const uint8_t *buffer = tbn_model_buffer();
  for (uint32_t i = 0u; i < loaded; ++i) {
    put(i % 8u == 0u ? "m-buffer-" : "-");
    put_hex(buffer[i]);
    if (i % 8u == 7u || i + 1u == loaded) put("\r\n");
  }
}

static APART void buffer_command(char *rest)
{
  const char *what = word(&rest);
  if (*what == '\0') {
    put("e-[Command 'db' requires a subcommand]\r\n");
  } else if (strcmp(what, "load") == 0) {
    load(word(&rest));
  } else if (strcmp(what, "print") == 0) {
    print();
  } else {
    load_bytes(what);
  }
}

static APART void help(void)
{
  put("name         : the device's name\r\n");
  put("profile      : the protocol and the model\r\n");
  put("timestamp    : microseconds since the start\r\n");
  tell("db load N    : begin a buffer of N bytes, at most ", input_bytes(), "\r\n");
  put("db HH[HH]*   : its next bytes, in hexadecimal\r\n");
  put("db print     : show it\r\n");
  tell("infer N W    : N inferences after W to warm up (1 ", DEFAULT_WARMUPS, ")\r\n");
  put("results      : the outputs of the last one\r\n");
}

static APART void answer(void)
{
  char *rest = command;
  const char *what = word(&rest);
  if (strcmp(what, "name") == 0) {
    put("m-name-dut-[" TBN_BOARD_NAME "]\r\n");
  } else if (strcmp(what, "timestamp") == 0) {
    lap();
  } else if (strcmp(what, "profile") == 0) {
    /* The protocol's own name, which hosts look for. */
    put("m-profile-[ULPMark for tinyML Firmware V0.0.1]\r\nm-model-[");
    put(tbn_model_name);
    put("]\r\n");
  } else if (strcmp(what, "help") == 0) {
    help();
  } else if (strcmp(what, "db") == 0) {
    buffer_command(rest);
  } else if (strcmp(what, "infer") == 0) {
    infer(rest);
  } else if (strcmp(what, "results") == 0) {
    results();
  } else {
    put("e-[Unknown command: ");
    put(what);
    put("]\r\n");
  }
}

void tbn_fault(uint32_t pc, uint32_t lr, uint32_t status)
{
  (void)lr;
  (void)status;
  put("e-[Fault at 0x");
  for (uint32_t shift = 32u; shift > 0u; shift -= 8u) put_hex((uint8_t)(pc >> (shift - 8u)));
  put("]\r\n");
  for (;;) {
  }
}

int main(void)
{
  tbn_uart_init();
  tbn_timer_start();
  put("m-timestamp-mode-performance\r\n");
  lap();
  put("m-init-done\r\n");
  for (;;) {
    put("m-ready\r\n");
    if (receive()) {
      answer();
    } else {
      put("e-[Command too long]\r\n");
    }
  }
}
