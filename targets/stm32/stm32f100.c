/* STM32F100: 24 MHz from the internal oscillator; USART1 on PA9 and PA10 (RM0041). */
#include "stm32.h"

#define RCC(offset) (*(volatile uint32_t *)(0x40021000u + (offset))) /* 6.3 */
#define RCC_CR RCC(0x00u)
#define RCC_CFGR RCC(0x04u)
#define RCC_APB2ENR RCC(0x18u)

#define GPIOA(offset) (*(volatile uint32_t *)(0x40010800u + (offset))) /* 7.2 */
#define GPIOA_CRH GPIOA(0x04u)
#define GPIOA_BSRR GPIOA(0x10u)

#define PLLON (1u << 24)
#define PLLRDY (1u << 25)
#define SW_PLL 2u
#define SWS(cfgr) ((cfgr) >> 2 & 3u)

/* Far beyond the PLL's lock time of 200 us (datasheet, PLL characteristics). */
#define ATTEMPTS 10000u

/* HSI / 2 * 6 = 24 MHz. Where the PLL does not lock, as in QEMU, which has none, the chip stays at
 * HSI's 8 MHz. */
static uint32_t start_clock(void)
{
  RCC_CFGR = 4u << 18; /* PLLMUL 6, PLLSRC HSI / 2, no bus divided */
  RCC_CR |= PLLON;
  for (uint32_t i = 0; i < ATTEMPTS; ++i) {
    if ((RCC_CR & PLLRDY) == 0u) continue;
    RCC_CFGR |= SW_PLL;
    for (uint32_t j = 0; j < ATTEMPTS && SWS(RCC_CFGR) != SW_PLL; ++j) {
    }
    return 24000000u;
  }
  return 8000000u;
}

uint32_t stm32_start(void)
{
  uint32_t clock = start_clock();
  RCC_APB2ENR |= 1u << 14 | 1u << 2; /* USART1, GPIOA */
  GPIOA_BSRR = 1u << 10;             /* PA10 pulled up */
  /* PA9: alternate function, push-pull, 50 MHz; PA10: input with pull (7.2.2). */
  GPIOA_CRH = (GPIOA_CRH & ~0xFF0u) | 0x8B0u;
  return clock;
}
