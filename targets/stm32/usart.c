/* USART1, 115200 baud, 8N1: the registers of the STM32F1 (RM0041, 23.6) and F4 (RM0090, 30.6). */
#include "stm32.h"
#include "tbn_board.h"

#define BAUD 115200u

#define USART1(offset) (*(volatile uint32_t *)(TBN_UART_BASE + (offset)))
#define SR USART1(0x00u)
#define DR USART1(0x04u)
#define BRR USART1(0x08u)
#define CR1 USART1(0x0Cu)

#define SR_RXNE (1u << 5)
#define SR_TXE (1u << 7)

void tbn_uart_init(void)
{
  BRR = (stm32_start() + BAUD / 2u) / BAUD;
  CR1 = 1u << 13 | 1u << 3 | 1u << 2; /* UE, TE, RE */
}

int32_t tbn_uart_poll(void)
{
  /* Reading SR, then DR also clears an overrun. */
  return (SR & SR_RXNE) != 0u ? (int32_t)(DR & 0xFFu) : -1;
}

int tbn_uart_offer(uint8_t byte)
{
  if ((SR & SR_TXE) == 0u) return 0;
  DR = byte;
  return 1;
}
