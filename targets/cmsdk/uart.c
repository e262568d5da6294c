/* UART of the Cortex-M System Design Kit (Arm DDI 0479, chapter 4.3). */
#include "tbn_board.h"

#define DATA (*(volatile uint32_t *)(TBN_UART_BASE + 0x0u))
#define STATE (*(volatile uint32_t *)(TBN_UART_BASE + 0x4u))
#define CTRL (*(volatile uint32_t *)(TBN_UART_BASE + 0x8u))
#define BAUDDIV (*(volatile uint32_t *)(TBN_UART_BASE + 0x10u))

#define STATE_TX_FULL 1u
#define STATE_RX_FULL 2u

void tbn_uart_init(void)
{
  BAUDDIV = 16u; /* the fastest rate the divider allows */
  CTRL = 3u;     /* transmitter and receiver on */
}

int32_t tbn_uart_poll(void)
{
  return (STATE & STATE_RX_FULL) != 0u ? (int32_t)(DATA & 0xFFu) : -1;
}

int tbn_uart_offer(uint8_t byte)
{
  if ((STATE & STATE_TX_FULL) != 0u) return 0;
  DATA = byte;
  return 1;
}
