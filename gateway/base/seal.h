/* Sealing: AES-256-GCM with one key for each thing that is sealed, drawn from a long-lived one.
 *
 * Must not know: what is sealed, where keys come from. Thread: one at a time; nothing is shared.
 *
 * A random nonce of 96 bits may serve one key only some 2^32 times (NIST SP 800-38D, 8.3), which a
 * busy gateway reaches in days. seal_derive() gives each thing a key of its own, so that the bound
 * counts per thing. */
#ifndef HEAVE_BASE_SEAL_H
#define HEAVE_BASE_SEAL_H

#include "gateway/base/buf.h"

#define SEAL_KEY_BYTES 32
#define SEAL_NONCE_BYTES 12
#define SEAL_TAG_BYTES 16

/* A cipher that is used again and again. */
struct seal;
struct seal *seal_new(void);
/* Wipes the key it last used. */
void seal_free(struct seal **seal);

/* The key of the thing named `context`: HMAC-SHA256 with `key`. Wipe `out` after use. */
void seal_derive(const unsigned char key[SEAL_KEY_BYTES], struct span context,
                 unsigned char out[SEAL_KEY_BYTES]);
/* Encrypts `plain` into `out` (as many bytes; may be the same memory) and makes the tag that
 * vouches for it and for `aad`. A nonce must never be used twice with one key. Errors: ERR_NOMEM
 * (OpenSSL).
 */
MUST_USE int seal_close(struct seal *seal, const unsigned char key[SEAL_KEY_BYTES],
                        const unsigned char nonce[SEAL_NONCE_BYTES], struct span aad,
                        struct span plain, char *out, unsigned char out_tag[SEAL_TAG_BYTES]);
/* The way back. Errors: ERR_DENIED (another key, or a byte of anything was changed; `out` is
 * wiped), ERR_NOMEM. */
MUST_USE int seal_open(struct seal *seal, const unsigned char key[SEAL_KEY_BYTES],
                       const unsigned char nonce[SEAL_NONCE_BYTES], struct span aad,
                       struct span sealed, const unsigned char tag[SEAL_TAG_BYTES], char *out);

#endif
