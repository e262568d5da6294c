/* A 64-bit tick counter from TIMER0, 32 bits at 16 MHz: the chip has no SysTick (nRF51 RM,
 * TIMER). */
#include "tbn_board.h"

#define TIMER0(offset) (*(volatile uint32_t *)(0x40008000u + (offset)))
#define TASKS_START TIMER0(0x000u)
#define TASKS_CLEAR TIMER0(0x00Cu)
#define TASKS_CAPTURE0 TIMER0(0x040u)
#define MODE TIMER0(0x504u)
#define BITMODE TIMER0(0x508u)
#define PRESCALER TIMER0(0x510u)
#define CC0 TIMER0(0x540u)

static uint32_t last, wraps;

void tbn_timer_interrupt(void)
{
}

void tbn_timer_start(void)
{
  MODE = 0u;      /* timer */
  BITMODE = 3u;   /* 32 bits, which only TIMER0 has */
  PRESCALER = 0u; /* 16 MHz */
  TASKS_CLEAR = 1u;
  TASKS_START = 1u;
}

/* Right where it is read at least once in 268 s, the time a wrap takes. */
uint64_t tbn_timer_ticks(void)
{
  TASKS_CAPTURE0 = 1u;
  uint32_t count = CC0;
  if (count < last) wraps++;
  last = count;
  return (uint64_t)wraps << 32 | count;
}
