/* The keys stored bodies are sealed with, read from the text of queue.encryption_key_file.
 *
 *     # a line each: a name, a colon, 32 random bytes in base64
 *     2026-11:pXJ4...=
 *     2026-05:Zm9v...=
 *
 * The first key seals what comes in; every key opens what it has sealed. So a key is changed by
 * putting a new one in front, and the old one may go when nothing sealed with it is left. The name
 * stands in each sealed body in plain sight.
 *
 * Must not know: files, bodies. Thread: any; a keyring never changes. */
#ifndef HEAVE_QUEUE_KEYRING_H
#define HEAVE_QUEUE_KEYRING_H

#include "gateway/base/buf.h"
#include "gateway/base/err.h"

#define KEYRING_ID_MAX 32
#define KEYRING_KEYS_MAX 32
#define KEYRING_KEY_BYTES 32

struct keyring;

/* Errors: ERR_INVAL with a sentence that names the line. `*out` is the caller's to free. */
MUST_USE int keyring_parse(struct span text, struct keyring **out, struct err *err);
/* Wipes the keys. */
void keyring_free(struct keyring **keyring);
/* The key that seals. */
const unsigned char *keyring_first(const struct keyring *keyring, struct span *out_id);
/* NULL when there is none of that name. */
const unsigned char *keyring_find(const struct keyring *keyring, struct span id);

#endif
