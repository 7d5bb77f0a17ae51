/* The mail that collected messages become: what a collection says about itself, and the composing.
 * Pure.
 *
 * A collection of one is that message, byte for byte. Of several: sender, recipients and subject in
 * the header are the first one's ("Digest of 3: ..."), a text lists time, subject and text of each
 * (cut where they are long), and each stands as an attachment, whole.
 *
 * Thread: any; no state. */
#ifndef HEAVE_GATEWAY_DIGEST_MAIL_H
#define HEAVE_GATEWAY_DIGEST_MAIL_H

#include "gateway/base/buf.h"
#include "queue/digest.h"

#include <stdbool.h>
#include <stddef.h>

/* digest.h's `about`. No part may hold a line feed. */
struct digest_about {
    struct span client;
    struct span lane;
    struct span key; /* idempotency key of the mail it becomes */
    struct span reverse_path;
    bool smtputf8;
    const struct span *recipients;
    size_t recipient_count;
};
/* Errors: ERR_INVAL (a line feed), ERR_LIMIT, ERR_NOMEM (the buf). */
MUST_USE int digest_about_write(const struct digest_about *about, struct buf *out);
/* Spans point into `text`, the array into the arena. Errors: ERR_INVAL, ERR_NOMEM. */
MUST_USE int digest_about_read(struct span text, struct arena *arena, struct digest_about *out);

struct digest_mail {
    struct span from;       /* address in the From field */
    struct span message_id; /* with <> */
    struct span subject;
};
/* Appends the message to `out`; spans of `*facts` point into the arena, the digest or `sender`, the
 * envelope's, which stands in From when the first message has none that can be written. Whatever
 * was collected becomes a mail: what cannot be read is attached as it is. Errors: ERR_INVAL (an
 * empty collection), ERR_LIMIT, ERR_NOMEM with a sentence. */
MUST_USE int digest_mail_compose(const struct digest *digest, struct span sender,
                                 const char *hostname, int64_t now_ms, struct arena *arena,
                                 struct buf *out, struct digest_mail *facts, struct err *err);

#endif
