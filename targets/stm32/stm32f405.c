/* STM32F405: 168 MHz from the internal oscillator; USART1 on PA9 and PA10 (RM0090). */
#include "stm32.h"

#define RCC(offset) (*(volatile uint32_t *)(0x40023800u + (offset))) /* 7.3 */
#define RCC_CR RCC(0x00u)
#define RCC_PLLCFGR RCC(0x04u)
#define RCC_CFGR RCC(0x08u)
#define RCC_AHB1ENR RCC(0x30u)
#define RCC_APB2ENR RCC(0x44u)

#define FLASH_ACR (*(volatile uint32_t *)0x40023C00u) /* 3.9.1 */

#define GPIOA(offset) (*(volatile uint32_t *)(0x40020000u + (offset))) /* 8.4 */
#define GPIOA_MODER GPIOA(0x00u)
#define GPIOA_PUPDR GPIOA(0x0Cu)
#define GPIOA_AFRH GPIOA(0x24u)

#define PLLON (1u << 24)
#define PLLRDY (1u << 25)
#define SW_PLL 2u
#define SWS(cfgr) ((cfgr) >> 2 & 3u)

/* Far beyond the PLL's lock time of 300 us (DS8626, main PLL characteristics). */
#define ATTEMPTS 10000u

/* HSI / 8 * 168 / 2 = 168 MHz. Where the PLL does not lock, as in QEMU, which has none, the chip
 * stays at HSI's 16 MHz. */
static uint32_t start_clock(void)
{
  /* Q 7, P 2, N 168, M 8; source HSI. Reserved bits stay. */
  RCC_PLLCFGR = (RCC_PLLCFGR & 0xF0BC8000u) | 7u << 24 | 168u << 6 | 8u;
  RCC_CR |= PLLON;
  for (uint32_t i = 0; i < ATTEMPTS; ++i) {
    if ((RCC_CR & PLLRDY) == 0u) continue;
    /* Caches and prefetch on, 5 wait states (table 10: 150 to 168 MHz at 2.7 to 3.6 V). */
    FLASH_ACR = 1u << 10 | 1u << 9 | 1u << 8 | 5u;
    for (uint32_t j = 0; j < ATTEMPTS && (FLASH_ACR & 7u) != 5u; ++j) {
    }
    RCC_CFGR = 4u << 13 | 5u << 10 | SW_PLL; /* APB2 84 MHz, APB1 42 MHz */
    for (uint32_t j = 0; j < ATTEMPTS && SWS(RCC_CFGR) != SW_PLL; ++j) {
    }
    return 84000000u;
  }
  return 16000000u;
}

uint32_t stm32_start(void)
{
  uint32_t clock = start_clock();
  RCC_AHB1ENR |= 1u << 0; /* GPIOA */
  RCC_APB2ENR |= 1u << 4; /* USART1 */
  (void)RCC_APB2ENR;      /* two cycles until a peripheral that was off answers (ES0182) */
  GPIOA_PUPDR = (GPIOA_PUPDR & ~(3u << 20)) | 1u << 20;     /* PA10 pulled up */
  GPIOA_AFRH = (GPIOA_AFRH & ~0xFF0u) | 0x770u;             /* both: function 7, USART1 */
  GPIOA_MODER = (GPIOA_MODER & ~(0xFu << 18)) | 0xAu << 18; /* both: alternate function */
  return clock;
}
