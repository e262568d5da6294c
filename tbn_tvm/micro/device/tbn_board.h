/* What a board gives: a UART, a timer and a painted stack. */
#ifndef TBN_BOARD_H
#define TBN_BOARD_H

#include <stdint.h>

/* Prepare the UART. */
void tbn_uart_init(void);

/* A byte that has arrived, or -1. */
int32_t tbn_uart_poll(void);

/* Send a byte if there is room for it; whether there was. */
int tbn_uart_offer(uint8_t byte);

/* Wait for a byte. */
static inline uint8_t tbn_uart_read(void)
{
  int32_t byte;
  do {
    byte = tbn_uart_poll();
  } while (byte < 0);
  return (uint8_t)byte;
}

/* Many times longer than any board's line takes for a byte. */
#define TBN_UART_ATTEMPTS 1000000u

/* Send a byte, waiting for room; a line that is dead loses it. */
static inline void tbn_uart_write(uint8_t byte)
{
  for (uint32_t i = 0; i < TBN_UART_ATTEMPTS; ++i) {
    if (tbn_uart_offer(byte)) return;
  }
}

/* Start counting, TBN_TIMER_HZ ticks a second. */
void tbn_timer_start(void);

/* Ticks since the start; monotonic. */
uint64_t tbn_timer_ticks(void);

/* Have the interrupt tell when so many ticks have passed from now, or somewhat more; 0: never. */
void tbn_timer_limit(uint64_t ticks);

/* The timer's interrupt; whether the limit has passed. */
int tbn_timer_interrupt(void);

/* Bytes of stack that were ever used since reset: start-up fills the stack with a pattern. */
uint32_t tbn_stack_used(void);

/* Report an overflow that left its mark at the stack's end, where no core found it at once. */
void tbn_stack_check(void);

/* Called on a fault with the program counter, link register and fault status; never returns. */
void tbn_fault(uint32_t pc, uint32_t lr, uint32_t status);

#endif
