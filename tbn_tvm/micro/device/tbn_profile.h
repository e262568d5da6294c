/* Times of a run's steps, in firmware built with TBN_PROFILE. The generated model's source has the
 * data; tbn_profile.c the rest. */
#ifndef TBN_PROFILE_H
#define TBN_PROFILE_H

#include <stdint.h>

/* Called before each step, and with their number behind the last; ends the run where asked to. */
#define TBN_STEP(step) \
  if (tbn_profile_step(step)) return;

#define TBN_ALL_STEPS 0xFFFFu

/* The run ends before this step. */
extern uint32_t tbn_profile_end;

/* Steps, and the timer's ticks and the core's cycles before each of them, behind the last, and one
 * entry to spare; modulo 2^32. Cycles are all the same where the core does not count them. */
extern const uint32_t tbn_profile_steps;
extern uint32_t tbn_profile_ticks[], tbn_profile_cycles[];

/* Start of a result, counted through all steps; its bytes go to *size. Null behind the last. */
const uint8_t *tbn_profile_result(uint32_t index, uint32_t *size);

/* Start counting cycles. */
void tbn_profile_start(void);

/* Takes the times; whether the run ends here. */
int tbn_profile_step(uint32_t step);

#endif
