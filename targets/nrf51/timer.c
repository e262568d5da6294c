/* A 64-bit tick counter from TIMER0, 32 bits at 16 MHz: the chip has no SysTick (nRF51 RM,
 * TIMER). */
#include "tbn_board.h"

#define TIMER0(offset) (*(volatile uint32_t *)(0x40008000u + (offset)))
#define TASKS_START TIMER0(0x000u)
#define TASKS_CLEAR TIMER0(0x00Cu)
#define TASKS_CAPTURE0 TIMER0(0x040u)
#define MODE TIMER0(0x504u)
#define EVENTS_COMPARE1 TIMER0(0x144u)
#define INTENSET TIMER0(0x304u)
#define INTENCLR TIMER0(0x308u)
#define BITMODE TIMER0(0x508u)
#define PRESCALER TIMER0(0x510u)
#define CC0 TIMER0(0x540u)
#define CC1 TIMER0(0x544u)

#define COMPARE1 (1u << 17)
#define MOST_TICKS 0xF0000000u /* 251 s: nearly a turn of the counter */

/* NVIC (Armv6-M ARM, B3.4). */
#define NVIC_ISER (*(volatile uint32_t *)0xE000E100u)
#define NVIC_ICPR (*(volatile uint32_t *)0xE000E280u)

static uint32_t last, wraps;

int tbn_timer_interrupt(void)
{
  EVENTS_COMPARE1 = 0u;
  return 1;
}

void tbn_timer_limit(uint64_t ticks)
{
  INTENCLR = COMPARE1;
  if (ticks == 0u) return;
  CC1 = (uint32_t)tbn_timer_ticks() + (ticks < MOST_TICKS ? (uint32_t)ticks : MOST_TICKS);
  EVENTS_COMPARE1 = 0u; /* of the earlier value */
  NVIC_ICPR = 1u << TBN_TIMER_IRQ;
  INTENSET = COMPARE1;
  NVIC_ISER = 1u << TBN_TIMER_IRQ;
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
