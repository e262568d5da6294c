/* What a board gives: a UART, a timer, a painted stack, and a place for faults to be reported. */
#ifndef TBN_BOARD_H
#define TBN_BOARD_H

#include <stdint.h>

/* Prepare the UART. */
void tbn_uart_init(void);

/* Wait for a byte. */
uint8_t tbn_uart_read(void);

/* Send a byte, waiting for room. */
void tbn_uart_write(uint8_t byte);

/* Start counting. */
void tbn_timer_start(void);

/* Ticks since the start; monotonic. */
uint64_t tbn_timer_ticks(void);

/* The timer's interrupt. */
void tbn_timer_interrupt(void);

/* Bytes of stack that were ever used since reset: start-up fills the stack with a pattern. */
uint32_t tbn_stack_used(void);

/* Called on a fault with the program counter, link register and fault status. */
void tbn_fault(uint32_t pc, uint32_t lr, uint32_t status);

#endif
