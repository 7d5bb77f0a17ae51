/* The header section of a message as fields, byte for byte: find, unfold, drop, put in front; and
 * address lists inside them. Pure.
 *
 * It stands here because intake (gateway) and the backends both rewrite headers and queue/ is the
 * only room both may see. It never re-encodes: what is not dropped or added stays byte for byte
 * what it was. MIME structure is gateway/mime's business.
 *
 * Must not know: Redis, loops. Thread: any. Input may be anything a peer sent: every scan is linear
 * and bounded. */
#ifndef HEAVE_QUEUE_FIELDS_H
#define HEAVE_QUEUE_FIELDS_H

#include "gateway/base/buf.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* One field of RFC 5322 2.2: `whole` includes name, colon, folded lines and the final CR LF. */
struct field {
    struct span whole;
    struct span name; /* as written, without the colon */
    struct span
        value; /* after the colon, with folds and the leading space, without the last CR LF */
};

/* Splits a message: header section (through the CR LF of its last field) and what follows (starting
 * with the empty line's CR LF, or empty). A line that is no field ends the header section there
 * (broken but common mail). */
void fields_split(struct span message, struct span *out_header, struct span *out_rest);

/* Takes the next field off `*header`. False when none is left. */
bool fields_next(struct span *header, struct field *out);
/* First field of that name (case-insensitive). */
bool fields_find(struct span header, struct span name, struct field *out);
size_t fields_count(struct span header, struct span name);
/* The value unfolded (CR LF before white space removed) and trimmed, into `out`.
 * Errors: ERR_LIMIT, ERR_NOMEM. */
MUST_USE int fields_unfold(struct span value, struct buf *out);
/* Appends `header` to `out` without the fields named in `names` (case-insensitive; a name ending in
 * '*' is a prefix). Errors: ERR_LIMIT, ERR_NOMEM. */
MUST_USE int fields_copy_without(struct span header, const char *const *names, size_t name_count,
                                 struct buf *out);

/* One mailbox of an address list (RFC 5322 3.4): display name as written (quotes and encoded words
 * kept), and the address without comments and white space. */
struct mailbox {
    struct span display; /* empty when there is none; of "a@b (Name)" the inside of the comment */
    struct span address; /* local@domain */
    struct span whole;   /* the mailbox as written, trimmed */
};
/* Takes the next mailbox off `*list` (a field value, folded or not); groups are flattened, entries
 * that are no mailbox are passed over. False at the end. `arena` holds the cleaned address when it
 * has to be copied. */
bool mailbox_next(struct span *list, struct arena *arena, struct mailbox *out);

/* Whether `address` is a usable RFC 5321 mailbox: local part 1..64 bytes (dot-atom or quoted
 * string), '@', domain 1..255 bytes of labels or an address literal; `allow_utf8` admits RFC 6531
 * characters. */
bool address_valid(struct span address, bool allow_utf8);
/* The part after the last '@' (empty span when there is none), and the part before it. */
struct span address_domain(struct span address);
struct span address_local(struct span address);
/* Equal as recipients: the domain and the local part compared ASCII case-insensitively (design.md
 * 6). */
bool address_same(struct span a, struct span b);

/* Encodes text for an unstructured field: as it is when it is printable ASCII, else as RFC 2047
 * encoded words in UTF-8, folded. Errors: ERR_LIMIT, ERR_NOMEM. */
MUST_USE int fields_encode_text(struct span utf8, struct buf *out);

#endif
