/* Reset and faults, for every Cortex-M core (Armv7-M ARM, B1.5). */
#include <stddef.h>
#include <stdint.h>

#include "tbn_board.h"
#include "tbn_fault.h"

extern uint32_t __data_load, __data_start, __data_end, __bss_start, __bss_end;
extern uint32_t __stack_limit, __stack_top, __code_start, __code_end;

/* What the stack holds where nothing was ever pushed. */
#define UNUSED_STACK 0xB1A5ED57u

int main(void);
void Reset_Handler(void);
void Fault_Handler(void);
void Timer_Handler(void);
uint64_t timer_check(uint32_t exc_return);

/* Cores with faults of several kinds, their status registers and perhaps an MPU. */
#if __ARM_ARCH_ISA_THUMB >= 2
#define MAINLINE 1
#else
#define MAINLINE 0
#endif

#define CCR (*(volatile uint32_t *)0xE000ED14u)
#define CFSR 0xE000ED28u
#define HFSR 0xE000ED2Cu
#define MMFAR 0xE000ED34u
#define BFAR 0xE000ED38u

#define CFSR_MSTKERR (1u << 4)
#define CFSR_MMARVALID (1u << 7)
#define CFSR_STKERR (1u << 12)
#define CFSR_STKOF (1u << 20)

/* What must stay free at the stack's end: nothing may write there. */
#define GUARD_BYTES 64u

static uint32_t *stack_pointer(void)
{
  uint32_t *sp;
  __asm volatile("mov %0, sp" : "=r"(sp));
  return sp;
}

/* Make the core find an overflow when it happens, where it can. */
static void guard_stack(void)
{
#if defined(__ARM_ARCH_8M_MAIN__) || defined(__ARM_ARCH_8_1M_MAIN__)
  __asm volatile("msr msplim, %0" : : "r"(&__stack_limit));
#elif MAINLINE
  /* The MPU of Armv7-M, if there is one (Armv7-M ARM, B3.5): the guard is for reading only. */
  if (*(volatile uint32_t *)0xE000ED90u >> 8 != 0u) {
    *(volatile uint32_t *)0xE000ED9Cu = (uint32_t)(uintptr_t)&__stack_limit | 1u << 4;
    *(volatile uint32_t *)0xE000EDA0u = 1u << 28 | 5u << 24 | 6u << 16 | 5u << 1 | 1u;
    *(volatile uint32_t *)0xE000ED94u = 5u;
    __asm volatile("dsb\n\tisb");
  }
#endif
#if MAINLINE
  CCR |= 1u << 4; /* DIV_0_TRP: a division by zero is a fault, not 0 */
#endif
}

void Reset_Handler(void)
{
#if defined(__ARM_FP) || defined(__ARM_FEATURE_MVE)
  /* CPACR: full access to coprocessors 10 and 11, before any code that uses the FPU or MVE. */
  *(volatile uint32_t *)0xE000ED88u |= 0xFu << 20;
  __asm volatile("dsb\n\tisb");
#endif
  const uint32_t *sp = stack_pointer();
  /* Volatile: a call of memset would lie in what it fills. */
  for (volatile uint32_t *to = &__stack_limit; to < sp;) *to++ = UNUSED_STACK;
  guard_stack();
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

__attribute__((weak)) void tbn_report(uint8_t cause, const uint32_t *words, const char *where,
                                      const char *what)
{
  (void)cause;
  (void)where;
  (void)what;
  tbn_fault(words[TBN_FAULT_PC], words[TBN_FAULT_LR], words[TBN_FAULT_CFSR]);
  for (;;) {
  }
}

/* Whether a word on the stack is where a call returns to: an odd address behind a BL. */
static int returns_there(uint32_t word)
{
  if ((word & 1u) == 0u || word < (uint32_t)(uintptr_t)&__code_start + 4u ||
      word > (uint32_t)(uintptr_t)&__code_end) {
    return 0;
  }
  const uint16_t *behind = (const uint16_t *)(uintptr_t)(word - 1u);
  return (behind[-2] & 0xF800u) == 0xF000u && (behind[-1] & 0xD000u) == 0xD000u;
}

/* The innermost calls that the stack from `at` on tells of; what this code itself has of it,
 * where that began again at the top, is no part of it. */
static void find_calls(const uint32_t *at, uint32_t *words)
{
  const uint32_t *sp = stack_pointer(), *end = sp > at ? sp - 16 : &__stack_top;
  uint32_t found = TBN_FAULT_CALLS;
  for (; at < end && found < TBN_FAULT_WORDS; ++at) {
    if (returns_there(*at)) words[found++] = *at;
  }
}

static int in_ram(const uint32_t *at)
{
  return ((uintptr_t)at & 3u) == 0u && at >= &__data_start && at < &__stack_top;
}

/* Hands the stacked registers {r0-r3, r12, lr, pc, xpsr} to C; written for every core's subset. A
 * stack that is full, or of which nothing is known, is used again from its top: there is no way
 * back. */
__attribute__((naked)) void Fault_Handler(void)
{
  __asm volatile(
      ".syntax unified\n\t"
      "mov r1, lr\n\t"
      "movs r2, #4\n\t"
      "tst r1, r2\n\t"
      "beq 1f\n\t"
      "mrs r0, psp\n\t"
      "b 2f\n"
      "1:\n\t"
      "mrs r0, msp\n"
      "2:\n\t"
      "ldr r2, 5f\n\t"
      "ldr r3, 6f\n\t"
      "cmp r0, r2\n\t"
      "bhs 3f\n\t"
      "subs r3, r0, r3\n\t"
      "blo 3f\n\t"
      "cmp r3, #255\n\t"
      "bhi 4f\n"
      "3:\n\t"
      "mov sp, r2\n"
      "4:\n\t"
      "bl tbn_fault_entry\n\t"
      ".align 2\n"
      "5:\n\t"
      ".word __stack_top\n"
      "6:\n\t"
      ".word __stack_limit\n");
}

uint8_t tbn_fault_collect(const uint32_t *frame, uint32_t exc_return, uint32_t *words)
{
  static const uint32_t reads[4] = {CFSR, HFSR, MMFAR, BFAR};
  uint32_t exception, stacked = 32u;
  __asm volatile("mrs %0, ipsr" : "=r"(exception));
#if MAINLINE
  CCR &= ~(1u << 3); /* UNALIGN_TRP: a trap within the report would be the end of it */
#endif
  if (MAINLINE && (exc_return & 16u) == 0u) stacked += 72u; /* the FPU's registers too */
  words[TBN_FAULT_SP] = (uint32_t)(uintptr_t)frame + stacked;
  for (uint32_t i = 0; MAINLINE && i < 4u; ++i) {
    words[TBN_FAULT_CFSR + i] = *(volatile uint32_t *)(uintptr_t)reads[i];
  }
  uint32_t cfsr = words[TBN_FAULT_CFSR];
  /* Nothing but the guard makes stacking break a rule of the MPU. */
  int overflow = frame < &__stack_limit || __stack_limit != UNUSED_STACK ||
                 (cfsr & (CFSR_STKOF | CFSR_MSTKERR)) != 0u ||
                 ((cfsr & CFSR_MMARVALID) != 0u &&
                  words[TBN_FAULT_CFSR + 2] - (uint32_t)(uintptr_t)&__stack_limit < GUARD_BYTES);
  /* Registers that did not fit the stack are lost. */
  if (in_ram(frame) && (cfsr & (CFSR_MSTKERR | CFSR_STKERR)) == 0u &&
      !(overflow && frame == &__stack_limit)) {
    for (uint32_t i = 0; i < 8u; ++i) words[i] = frame[i];
    words[TBN_FAULT_SP] += (frame[7] >> 9 & 1u) * 4u; /* padding to eight bytes */
  }
  if (in_ram(frame)) find_calls(frame + stacked / 4u, words);
  if (overflow) return TBN_FAULT_STACK;
  return exception >= 15u ? TBN_FAULT_WATCHDOG : TBN_FAULT_EXCEPTION;
}

__attribute__((weak)) void tbn_fault_entry(const uint32_t *frame, uint32_t exc_return)
{
  (void)exc_return;
  /* CFSR reads as zero on cores that lack it. */
  tbn_fault(frame[TBN_FAULT_PC], frame[TBN_FAULT_LR], *(volatile uint32_t *)(uintptr_t)CFSR);
  for (;;) {
  }
}


void tbn_stack_check(void)
{
  /* A fault, whose handler knows what to do. */
  if (__stack_limit != UNUSED_STACK) __asm volatile("udf #0");
}

void tbn_assertion_failed(const char *where, const char *what)
{
  uint32_t words[TBN_FAULT_WORDS] = {0u};
  const uint32_t *sp = stack_pointer();
  words[TBN_FAULT_PC] = ((uint32_t)(uintptr_t)__builtin_return_address(0) & ~1u) - 2u; /* the call */
  words[TBN_FAULT_SP] = (uint32_t)(uintptr_t)sp;
  find_calls(sp, words);
  tbn_report(TBN_FAULT_ASSERTION, words, where, what);
}

/* Counts; past the limit, what was interrupted is reported as if it had faulted. The jump goes
 * through a register: a report ends the program and counts as a fault, not as an interrupt. */
__attribute__((naked)) void Timer_Handler(void)
{
  __asm volatile(
      ".syntax unified\n\t"
      "mov r0, lr\n\t"
      "bl timer_check\n\t"
      "mov lr, r0\n\t"
      "cmp r1, #0\n\t"
      "bne 1f\n\t"
      "bx lr\n"
      "1:\n\t"
      "ldr r0, 2f\n\t"
      "mov pc, r0\n\t"
      ".align 2\n"
      "2:\n\t"
      ".word Fault_Handler\n");
}

/* Gives back what it gets, and in the upper half whether the limit has passed. */
uint64_t timer_check(uint32_t exc_return)
{
  return (uint64_t)(uint32_t)tbn_timer_interrupt() << 32 | exc_return;
}

#if defined(TBN_TIMER_IRQ)
#define VECTORS (16u + TBN_TIMER_IRQ + 1u)
#else
#define VECTORS 16u
#endif

__attribute__((section(".vectors"), used)) static void (*const vectors[VECTORS])(void) = {
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
    Timer_Handler, /* SysTick */
#if defined(TBN_TIMER_IRQ)
    [16u + TBN_TIMER_IRQ] = Timer_Handler,
#endif
};
