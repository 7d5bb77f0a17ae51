/* What the header of a submission says that intake decides by. Pure.
 *
 * Thread: any; no state. */
#ifndef HEAVE_GATEWAY_INTAKE_HEADER_H
#define HEAVE_GATEWAY_INTAKE_HEADER_H

#include "gateway/policy.h"

/* Spans point into the header, or into the arena where they had to be made. */
struct intake_header {
    struct span from;       /* address */
    struct span message_id; /* with <> */
    struct span subject;
    struct span lane;
    struct span idempotency_key;
    struct span dedup_key;
    struct span whole_subject;
    struct span send_at;
    struct span tags; /* each followed by a line feed */
    size_t received;
    bool has_from, has_date;
    bool foreign_from; /* a From mailbox this client may not use, or a From nobody can read */
    bool has_private;  /* Bcc or X-Heave-* fields to take out */
};

/* Reads the header section into `out`, which is zero before. What is not there stays empty; a
 * second field of a kind that may stand once wins. `client` decides which From is foreign. */
void intake_header_read(struct span header, const struct policy_client *client, struct arena *arena,
                        struct intake_header *out);

#endif
