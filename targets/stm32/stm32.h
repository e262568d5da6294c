/* What an STM32 chip's file gives to usart.c. */
#ifndef STM32_H
#define STM32_H

#include <stdint.h>

/* Start the clocks and connect USART1 to its pins; the USART's clock in Hz. */
uint32_t stm32_start(void);

#endif
