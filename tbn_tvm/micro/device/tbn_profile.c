#if defined(TBN_PROFILE)
#include "tbn_profile.h"

#include "tbn_board.h"

/* The cycle counter of Armv7-M and later (Armv7-M ARM, C1.6.5, C1.8.7). */
#if defined(__ARM_ARCH_ISA_THUMB) && __ARM_ARCH_ISA_THUMB >= 2
#define DEMCR (*(volatile uint32_t *)0xE000EDFCu)
#define DWT_CTRL (*(volatile uint32_t *)0xE0001000u)
#define DWT_CYCCNT (*(volatile uint32_t *)0xE0001004u)
#endif

uint32_t tbn_profile_end = TBN_ALL_STEPS;

void tbn_profile_start(void)
{
#if defined(DWT_CYCCNT)
  DEMCR |= 1u << 24;
  DWT_CTRL |= 1u;
#endif
}

int tbn_profile_step(uint32_t step)
{
  tbn_profile_ticks[step] = (uint32_t)tbn_timer_ticks();
#if defined(DWT_CYCCNT)
  tbn_profile_cycles[step] = DWT_CYCCNT;
#endif
  return step == tbn_profile_end;
}
#else
typedef int tbn_nothing_to_profile; /* C wants something in every file */
#endif
