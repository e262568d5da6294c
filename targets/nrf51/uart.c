/* UART of the nRF51, 115200 baud, 8N1, no flow control (nRF51 RM v3.0, UART). */
#include "tbn_board.h"

#define CLOCK(offset) (*(volatile uint32_t *)(0x40000000u + (offset)))
#define TASKS_HFCLKSTART CLOCK(0x000u)
#define EVENTS_HFCLKSTARTED CLOCK(0x100u)

#define UART(offset) (*(volatile uint32_t *)(0x40002000u + (offset)))
#define TASKS_STARTRX UART(0x000u)
#define TASKS_STARTTX UART(0x008u)
#define EVENTS_RXDRDY UART(0x108u)
#define EVENTS_TXDRDY UART(0x11Cu)
#define ENABLE UART(0x500u)
#define PSELRTS UART(0x508u)
#define PSELTXD UART(0x50Cu)
#define PSELCTS UART(0x510u)
#define PSELRXD UART(0x514u)
#define RXD UART(0x518u)
#define TXD UART(0x51Cu)
#define BAUDRATE UART(0x524u)
#define CONFIG UART(0x56Cu)

#define GPIO(offset) (*(volatile uint32_t *)(0x50000000u + (offset)))
#define OUTSET GPIO(0x508u)
#define PIN_CNF(pin) GPIO(0x700u + 4u * (pin))

#define DISCONNECTED 0xFFFFFFFFu

/* Far beyond the crystal's start-up time of about 1 ms (PS, 16 MHz crystal oscillator). */
#define ATTEMPTS 100000u

static uint8_t sending; /* a byte was sent, and its end not yet seen */

void tbn_uart_init(void)
{
  /* The crystal oscillator: the RC oscillator is too inexact for a UART (RM, CLOCK). */
  EVENTS_HFCLKSTARTED = 0u;
  TASKS_HFCLKSTART = 1u;
  for (uint32_t i = 0; i < ATTEMPTS && EVENTS_HFCLKSTARTED == 0u; ++i) {
  }
  OUTSET = 1u << TBN_UART_TX_PIN;
  PIN_CNF(TBN_UART_TX_PIN) = 3u;   /* output, input buffer off (RM, GPIO) */
  PIN_CNF(TBN_UART_RX_PIN) = 0xCu; /* input, pulled up */
  PSELTXD = TBN_UART_TX_PIN;
  PSELRXD = TBN_UART_RX_PIN;
  PSELRTS = DISCONNECTED;
  PSELCTS = DISCONNECTED;
  BAUDRATE = 0x01D7E000u; /* 115200 */
  CONFIG = 0u;
  ENABLE = 4u;
  EVENTS_RXDRDY = 0u;
  TASKS_STARTRX = 1u;
  TASKS_STARTTX = 1u;
}

int32_t tbn_uart_poll(void)
{
  if (EVENTS_RXDRDY == 0u) return -1;
  EVENTS_RXDRDY = 0u; /* before the read, which lets the next byte raise it (RM, UART: reception) */
  return (int32_t)(RXD & 0xFFu);
}

int tbn_uart_offer(uint8_t byte)
{
  if (sending && EVENTS_TXDRDY == 0u) return 0;
  EVENTS_TXDRDY = 0u;
  sending = 1u;
  TXD = byte;
  return 1;
}
