/* A 64-bit tick counter from the 24-bit SysTick every Cortex-M has (Armv7-M ARM, B3.3). */
#include "tbn_board.h"

#define SYST_CSR (*(volatile uint32_t *)0xE000E010u)
#define SYST_RVR (*(volatile uint32_t *)0xE000E014u)
#define SYST_CVR (*(volatile uint32_t *)0xE000E018u)
#define BITS 20u /* of 24: interrupts often enough for a limit, seldom enough to cost nothing */
#define RELOAD ((1u << BITS) - 1u)

static volatile uint32_t wraps, last; /* the first that is too late; 0: none */

int tbn_timer_interrupt(void)
{
  wraps++;
  return last != 0u && wraps >= last;
}

void tbn_timer_limit(uint64_t ticks)
{
  last = ticks == 0u ? 0u : (uint32_t)((tbn_timer_ticks() + ticks) >> BITS) + 1u;
}

void tbn_timer_start(void)
{
  SYST_RVR = RELOAD;
  SYST_CVR = 0u;
  SYST_CSR = 7u; /* core clock, interrupt on wrap, enabled */
}

uint64_t tbn_timer_ticks(void)
{
  uint32_t before, count;
  do { /* again where the counter wrapped between the two reads */
    before = wraps;
    count = SYST_CVR;
  } while (before != wraps);
  return (uint64_t)before * (RELOAD + 1u) + (RELOAD - count);
}
