/* The operations of the ACS simulator, by id.
 *
 * Bounded: after 500,000 operations the older half is forgotten. Thread: the loop's. */
#ifndef HEAVE_BENCH_SIM_OPERATIONS_H
#define HEAVE_BENCH_SIM_OPERATIONS_H

#include "gateway/base/buf.h"

#include <stdint.h>

enum operation_fate {
    FATE_SUCCEEDED,
    FATE_DROPPED,    /* EmailDropped */
    FATE_SUPPRESSED, /* EmailDroppedAllRecipientsSuppressed */
};
struct operation {
    uint8_t id[16];
    int64_t created_ms;
    enum operation_fate fate;
    bool used;
};

struct operations;
struct operations *operations_new(void);
void operations_free(struct operations **operations);
void operations_reset(struct operations *operations);
/* Reads a UUID. False when it is none. */
bool operation_id_read(struct span text, uint8_t out[16]);
const struct operation *operations_find(const struct operations *operations, const uint8_t id[16]);
/* `id` must not be known. */
void operations_add(struct operations *operations, const uint8_t id[16], int64_t now_ms,
                    enum operation_fate fate);

#endif
