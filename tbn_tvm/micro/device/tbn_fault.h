/* Reports of what should not have happened. None of these functions comes back. */
#ifndef TBN_FAULT_H
#define TBN_FAULT_H

#include <stdint.h>

enum {
  TBN_FAULT_EXCEPTION = 1,  /* the core refused to go on */
  TBN_FAULT_STACK = 2,      /* the stack grew over its end */
  TBN_FAULT_WATCHDOG = 3,   /* the model ran longer than it may */
  TBN_FAULT_ASSERTION = 4,  /* a tbn_assert() does not hold */
};

/* r0-r3, r12, lr, pc, xpsr, sp, CFSR, HFSR, MMFAR, BFAR, then addresses of calls on the stack, the
 * innermost first; zeros where there is nothing. */
enum {
  TBN_FAULT_LR = 5,
  TBN_FAULT_PC = 6,
  TBN_FAULT_SP = 8,
  TBN_FAULT_CFSR = 9,
  TBN_FAULT_CALLS = 13,
  TBN_FAULT_WORDS = 17,
};

/* The core's entry for faults: the registers it stacked, and what its return would have taken. Where
 * no firmware defines it, tbn_fault() is called. */
void tbn_fault_entry(const uint32_t *frame, uint32_t exc_return);

/* What is known of a fault, to words; its cause. */
uint8_t tbn_fault_collect(const uint32_t *frame, uint32_t exc_return, uint32_t *words);

/* Tell the host. Where no firmware defines it, tbn_fault() is called. */
void tbn_report(uint8_t cause, const uint32_t *words, const char *where, const char *what);

/* For firmware with nothing to tell it to: program counter, link register and fault status. */
void tbn_fault(uint32_t pc, uint32_t lr, uint32_t status);

void tbn_assertion_failed(const char *where, const char *what);

#define TBN_TEXT(value) #value
#define TBN_LINE(line) TBN_TEXT(line)

/* Ends in a report of file, line and condition where that does not hold. */
#define tbn_assert(condition) \
  ((condition) ? (void)0 : tbn_assertion_failed(__FILE__ ":" TBN_LINE(__LINE__), #condition))

#endif
