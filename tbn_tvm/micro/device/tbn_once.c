/* Firmware without a host: runs the model once, then sleeps.
 *
 * Both functions below do nothing and may be defined elsewhere: tbn_before_run() to fill the model's
 * inputs (zeros otherwise), tbn_after_run() to use its outputs. */
#include "tbn_board.h"
#include "tbn_model.h"

__attribute__((weak)) void tbn_before_run(void)
{
}

__attribute__((weak)) void tbn_after_run(void)
{
}

static void sleep_forever(void)
{
  for (;;) __asm volatile("wfi");
}

void tbn_fault(uint32_t pc, uint32_t lr, uint32_t status)
{
  (void)pc;
  (void)lr;
  (void)status;
  sleep_forever();
}

int main(void)
{
  tbn_before_run();
  tbn_model_run();
  tbn_after_run();
  sleep_forever();
  return 0;
}
