/* What makes a message a repeat of another: a client's `dedup` and a message to the window of
 * queue/dedup.h. Pure.
 *
 * The key is a hash of envelope sender, envelope recipients (in any order, any case) and either the
 * message's own key (X-Heave-Dedup-Key, `dedup_key` of the API) or its subject, of which letter
 * case and amount of white space, and with `ignore_digits` all digits, do not count. Recipients
 * always count: nobody misses a message because somebody else got one. A message with neither key
 * nor subject is never a repeat.
 *
 * Thread: any; no state. */
#ifndef HEAVE_GATEWAY_INTAKE_DEDUP_H
#define HEAVE_GATEWAY_INTAKE_DEDUP_H

#include "gateway/policy.h"
#include "queue/dedup.h"

#define INTAKE_DEDUP_KEY_MAX 255 /* of what the sender gives */

struct intake_dedup {
    struct span sender;
    const struct span *recipients;
    size_t recipient_count;
    struct span given_key;
    struct span subject; /* as in the header, folds included */
};

/* Fills scope, key, limit and length of the window; `room` keeps the key. False: this message is in
 * none. */
bool intake_dedup_window(const struct policy_client_conf *client,
                         const struct intake_dedup *message, char room[DEDUP_KEY_MAX + 1],
                         struct dedup_window *out);

#endif
