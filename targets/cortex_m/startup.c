/* Reset and faults, for every Cortex-M core (Armv7-M ARM, B1.5). */
#include <stdint.h>

#include "tbn_board.h"

extern uint32_t __data_load, __data_start, __data_end, __bss_start, __bss_end;
extern uint32_t __stack_limit, __stack_top;

/* What the stack holds where nothing was ever pushed. */
#define UNUSED_STACK 0xB1A5ED57u

int main(void);
void Reset_Handler(void);
void Fault_Handler(void);
void tbn_fault_entry(const uint32_t *frame);

void Reset_Handler(void)
{
#if defined(__ARM_FP) || defined(__ARM_FEATURE_MVE)
  /* CPACR: full access to coprocessors 10 and 11, before any code that uses the FPU or MVE. */
  *(volatile uint32_t *)0xE000ED88u |= 0xFu << 20;
  __asm volatile("dsb\n\tisb");
#endif
  uint32_t *sp;
  __asm volatile("mov %0, sp" : "=r"(sp));
  /* Volatile: a call of memset would lie in what it fills. */
  for (volatile uint32_t *to = &__stack_limit; to < sp;) *to++ = UNUSED_STACK;
  const uint32_t *from = &__data_load;
  for (uint32_t *to = &__data_start; to < &__data_end;) *to++ = *from++;
  for (uint32_t *to = &__bss_start; to < &__bss_end;) *to++ = 0u;
  (void)main();
  for (;;) {
  }
}

uint32_t tbn_stack_used(void)
{
  const uint32_t *at = &__stack_limit;
  while (at < &__stack_top && *at == UNUSED_STACK) at++;
  return (uint32_t)((uintptr_t)&__stack_top - (uintptr_t)at);
}

/* Hands the stacked registers {r0-r3, r12, lr, pc, xpsr} to C; written for every core's subset. */
__attribute__((naked)) void Fault_Handler(void)
{
  __asm volatile(
      "mov r0, lr\n\t"
      "movs r1, #4\n\t"
      "tst r0, r1\n\t"
      "beq 1f\n\t"
      "mrs r0, psp\n\t"
      "b 2f\n"
      "1:\n\t"
      "mrs r0, msp\n"
      "2:\n\t"
      "bl tbn_fault_entry\n");
}

void tbn_fault_entry(const uint32_t *frame)
{
  /* CFSR reads as zero on cores that lack it. */
  tbn_fault(frame[6], frame[5], *(volatile uint32_t *)0xE000ED28u);
  for (;;) {
  }
}

__attribute__((section(".vectors"), used)) static void (*const vectors[16])(void) = {
    (void (*)(void))(uintptr_t)&__stack_top,
    Reset_Handler,
    Fault_Handler, /* NMI */
    Fault_Handler, /* HardFault */
    Fault_Handler, /* MemManage */
    Fault_Handler, /* BusFault */
    Fault_Handler, /* UsageFault */
    0, 0, 0, 0,
    Fault_Handler, /* SVCall */
    Fault_Handler, /* DebugMonitor */
    0,
    Fault_Handler, /* PendSV */
    tbn_timer_interrupt,
};
