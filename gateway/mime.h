/* Messages taken apart and put together: RFC 5322 and MIME (RFC 2045-2049, 2047, 2231, 2387). The
 * only user of GMime.
 *
 * Reading serves the services that want parts (ACS); composing serves the HTTP API, whose JSON
 * becomes the RFC 5322 message that is queued. Neither is on the path of a message that goes from
 * SMTP to SMTP.
 *
 * Must not know: queues, backends' ways, the wire of the API. Thread: any; no state of ours. The
 * first call prepares GMime once for the process. Input of mime_read is what a peer sent: every
 * count, depth and amount of work is bounded. */
#ifndef HEAVE_GATEWAY_MIME_H
#define HEAVE_GATEWAY_MIME_H

#include "backends/mail_view.h"
#include "gateway/base/buf.h"

#define MIME_DEPTH_MAX 50
#define MIME_PARTS_MAX 1000
#define MIME_HEADERS_MAX 1000

/* Reads `message` into `out`; everything is allocated from `arena`, which should allow about twice
 * the size of the message. Fits mail_read_fn.
 *
 * The body is the first text part and its multipart/alternative sisters; all other leaves, further
 * texts among them, become attachments in their order. A multipart/related root is body, its
 * sisters are inline. message/rfc822, S/MIME, calendar and TNEF parts are attachments, never
 * opened. Text is UTF-8: an unknown or missing charset is read as UTF-8 or else windows-1252, bytes
 * that make no character become U+FFFD. Line ends of texts stay as they were. Addresses have their
 * domain in A-labels; groups are flattened. message_id keeps its <>. Header values hold no control
 * character. `headers` leaves out those of mime_field_reserved().
 *
 * Errors: ERR_INVAL (nothing readable), ERR_LIMIT (depth, parts, fields, work), ERR_NOMEM (arena).
 */
MUST_USE int mime_read(struct span message, struct arena *arena, struct mail_view *out,
                       struct err *err);

/* Whether the field never stands in mail_view.headers: it is expressed elsewhere in the view (From,
 * To, Cc, Bcc, Reply-To, Subject, Message-ID), belongs to MIME (Content-*, MIME-Version), or tells
 * of the way of the message (Received, Return-Path, DKIM and ARC signatures, results of checks,
 * Resent-*). */
bool mime_field_reserved(struct span name);

struct mime_options {
    /* What boundaries are made from: letters and digits, at most 40. Empty: random, which nobody's
     * content can collide with. Give one where equal input must give equal bytes. */
    struct span boundary;
};

/* Appends the message to `out`: From, To, Cc, Reply-To, Subject, Message-ID as far as the view has
 * them, view->headers in their order, and the body as text or html, multipart/alternative of both,
 * multipart/related with the inline parts and multipart/mixed with the others, as needed.
 * Bcc is never written; Date and Message-ID are added by intake when missing. A view with neither
 * text nor html gets an empty text. CR LF line ends, 7-bit throughout, no line above 998 bytes;
 * texts get canonical line ends and a last one; control characters in the subject and in display
 * names become spaces. Addresses with UTF-8 are written as such (RFC 6532).
 *
 * Errors: ERR_INVAL (an address, header, content type, Content-ID or UTF-8 text is broken, or a
 * header is reserved; with a sentence naming it), ERR_LIMIT (`out`), ERR_NOMEM. Then `out` is as
 * before. */
MUST_USE int mime_compose(const struct mail_view *view, const struct mime_options *options,
                          struct buf *out, struct err *err);

#endif
