/* Reads SMTP replies (RFC 5321 4.2) line by line. Pure; thread: any.
 *
 * Must not know: what was asked. It keeps no bytes of its own but the text of the reply being read:
 * a line that has not come whole stays with the caller and is shown again. Bounds: a line of 2,000
 * bytes (the RFC allows 512), 100 lines, 400 bytes of text; longer text is cut, a longer line or
 * reply is ERR_PROTO. */
#ifndef HEAVE_BACKENDS_SMTP_REPLY_H
#define HEAVE_BACKENDS_SMTP_REPLY_H

#include "gateway/base/buf.h"

#include <stddef.h>
#include <stdint.h>

#define SMTP_REPLY_LINE_MAX ((size_t)2000)
#define SMTP_REPLY_LINES_MAX 100
#define SMTP_REPLY_TEXT_MAX ((size_t)400)

struct smtp_reply {
    uint32_t code; /* 200..599; 0: nothing read yet */
    size_t lines;
    size_t len;
    /* All lines without codes, joined by a space; an enhanced status code that every line repeats
     * stands once. Control characters are replaced by '?'. */
    char text[SMTP_REPLY_TEXT_MAX];
};

enum smtp_reply_step {
    SMTP_REPLY_NEED, /* no whole line is there */
    SMTP_REPLY_LINE, /* a line was taken, the reply goes on */
    SMTP_REPLY_LAST, /* the last line was taken */
};

void smtp_reply_reset(struct smtp_reply *reply);
static inline struct span smtp_reply_text(const struct smtp_reply *reply)
{
    return span_make(reply->text, reply->len);
}
/* Takes one line off `*bytes` into `reply`. `*out_line` is its text without the code, lent as long
 * as the bytes. Returns an enum smtp_reply_step. Errors: ERR_PROTO (no reply line, another code
 * than the line before, too long). */
MUST_USE int smtp_reply_step(struct smtp_reply *reply, struct span *bytes, struct span *out_line);

#endif
