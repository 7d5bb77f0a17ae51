/* A message taken apart for services that want parts instead of MIME (ACS, Graph JSON). Data only.
 *
 * gateway/mime fills it, backends read it; the type stands here because the arrow goes from gateway
 * to backends. Thread: that of the backend. Everything lives in the arena given to the reader. */
#ifndef HEAVE_BACKENDS_MAIL_VIEW_H
#define HEAVE_BACKENDS_MAIL_VIEW_H

#include "gateway/base/buf.h"

#include <stdbool.h>
#include <stddef.h>

struct mail_address {
    struct span address;
    struct span name; /* decoded UTF-8, may be empty */
};
struct mail_header {
    struct span name;
    struct span value; /* unfolded, decoded UTF-8 */
};
struct mail_attachment {
    struct span name; /* decoded UTF-8; a name is made up from the type when there is none */
    struct span content_type; /* "image/png" without parameters */
    struct span content_id;   /* without <>; empty when there is none */
    bool is_inline;
    struct span content; /* decoded bytes */
};
struct mail_view {
    struct span subject; /* decoded UTF-8 */
    struct span message_id;
    struct mail_address from;
    struct mail_address *to, *cc, *reply_to;
    size_t to_count, cc_count, reply_to_count;
    struct span text; /* UTF-8, empty when there is none */
    struct span html;
    bool has_text, has_html;
    struct mail_attachment *attachments;
    size_t attachment_count;
    struct mail_header *headers; /* those not expressed above and not of MIME or trace: X-…, List-…,
                                    Auto-Submitted, … */
    size_t header_count;
};

/* Reads `message` (RFC 5322) into `out`, everything allocated from `arena`. Bounded in depth (50),
 * parts (1,000), size. Errors: ERR_INVAL (no readable structure), ERR_LIMIT, ERR_NOMEM; with a
 * sentence. */
typedef int (*mail_read_fn)(struct span message, struct arena *arena, struct mail_view *out,
                            struct err *err);

#endif
