/* CRC-32 (IEEE 802.3, reflected, as zlib's crc32) with a 16-entry table: 64 bytes of flash. */
#ifndef TBN_CRC32_H
#define TBN_CRC32_H

#include <stddef.h>
#include <stdint.h>

/* Continue a CRC over more bytes; start from 0. */
uint32_t tbn_crc32(uint32_t crc, const uint8_t *data, size_t size);

#endif
