#include "gateway/intake_dedup.h"

#include "gateway/base/codec.h"
#include "gateway/base/tls.h"

#include <ctype.h>

#define DIGEST_BYTES 32
#define SUBJECT_MAX 2000 /* what is longer is told apart by its first part */

/* Letter case and the amount of white space do not count. */
static size_t normalise(struct span text, bool ignore_digits, char *out, size_t room)
{
    size_t len = 0;
    bool space = false;
    for (size_t i = 0; i < text.len && len + 2 < room; i++) {
        unsigned char byte = (unsigned char)text.data[i];
        if (isspace(byte)) {
            space = len > 0;
        } else if (!ignore_digits || !isdigit(byte)) {
            if (space) {
                out[len++] = ' ';
                space = false;
            }
            out[len++] = (char)tolower(byte);
        }
    }
    return len;
}

static void add_digest(unsigned char sum[DIGEST_BYTES], struct span text)
{
    unsigned char digest[DIGEST_BYTES];
    char lower[SUBJECT_MAX];
    size_t len = normalise(text, false, lower, sizeof lower);
    tls_sha256(span_make(lower, len), digest);
    /* A sum does not depend on the order, and two of the same do not cancel. */
    unsigned carry = 0;
    for (size_t i = 0; i < DIGEST_BYTES; i++) {
        carry += (unsigned)sum[i] + digest[i];
        sum[i] = (unsigned char)carry;
        carry >>= 8;
    }
}

bool intake_dedup_window(const struct policy_client_conf *client,
                         const struct intake_dedup *message, char room[DEDUP_KEY_MAX + 1],
                         struct dedup_window *out)
{
    const struct policy_dedup_conf *conf = &client->dedup;
    char subject[SUBJECT_MAX];
    unsigned char parts[3 * DIGEST_BYTES] = {0};
    unsigned char digest[DIGEST_BYTES];
    bool own_key = message->given_key.len > 0;
    if (conf->mode == POLICY_DEDUP_OFF) {
        return false;
    }
    size_t len = normalise(message->subject, conf->ignore_digits, subject, sizeof subject);
    if (!own_key && len == 0) {
        return false;
    }
    tls_sha256(own_key ? message->given_key : span_make(subject, len), parts);
    parts[0] = (unsigned char)(own_key ? parts[0] | 1
                                       : parts[0] & ~1); /* never one for the other */
    add_digest(parts + DIGEST_BYTES, message->sender);
    for (size_t i = 0; i < message->recipient_count; i++) {
        add_digest(parts + 2 * DIGEST_BYTES, message->recipients[i]);
    }
    tls_sha256(span_make((const char *)parts, sizeof parts), digest);
    codec_hex(digest, DIGEST_BYTES / 2, room);
    *out = (struct dedup_window){
        .scope = span_of(client->name),
        .key = span_of(room),
        .limit = conf->mode == POLICY_DEDUP_THROTTLE ? conf->limit : 1,
        .window_ms = conf->window_ms,
    };
    return true;
}
