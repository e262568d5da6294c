/* The model as the firmware around it sees it; the generated tbn_model.c implements it. */
#ifndef TBN_MODEL_H
#define TBN_MODEL_H

#include <stdint.h>

/* First bytes of the model's digest: the host checks that it talks to the firmware it built. */
extern const uint8_t tbn_model_digest[8];

uint32_t tbn_model_inputs(void);
uint32_t tbn_model_outputs(void);

/* Start of an input or output; its bytes go to *size. Null where there is none of that index. */
uint8_t *tbn_model_input(uint32_t index, uint32_t *size);
const uint8_t *tbn_model_output(uint32_t index, uint32_t *size);

void tbn_model_run(void);

/* The model's name. */
extern const char tbn_model_name[];

/* Elements of all outputs together, and one of them as a real number. */
uint32_t tbn_model_results(void);
float tbn_model_result(uint32_t index);

/* Room for all inputs, one after the other, that runs leave alone. */
uint8_t *tbn_model_buffer(void);

#endif
