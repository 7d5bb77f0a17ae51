/* Small encodings: base64, hex, percent, UTF-8 checks, random bytes and identifiers.
 *
 * Must not know: who uses them. Thread: any; no state. */
#ifndef HEAVE_BASE_CODEC_H
#define HEAVE_BASE_CODEC_H

#include "gateway/base/buf.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Standard alphabet with padding (RFC 4648 4). `line` > 0: CR LF after every `line` output
 * characters and at the end (RFC 2045 6.8 wants 76). Errors: ERR_LIMIT, ERR_NOMEM (the buf). */
MUST_USE int codec_base64_encode(struct span in, size_t line, struct buf *out);
/* Strict unless `lenient`: then white space is skipped and padding may be missing.
 * Errors: ERR_INVAL, ERR_LIMIT, ERR_NOMEM. */
MUST_USE int codec_base64_decode(struct span in, bool lenient, struct buf *out);
/* RFC 4648 5 without padding, as JWTs use it. */
MUST_USE int codec_base64url_encode(struct span in, struct buf *out);
MUST_USE int codec_base64url_decode(struct span in, struct buf *out);
/* `value` in decimal at the end of `room`; a span over it. Numbers are written some thirty times
 * for each message, which was the largest part of the time spent in printf. */
#define CODEC_DECIMAL_MAX 20
struct span codec_decimal(int64_t value, char room[CODEC_DECIMAL_MAX]);

/* Lower-case hex; `out` has 2 * len + 1 bytes. */
void codec_hex(const void *data, size_t len, char *out);
/* Percent-decodes a URL component; `plus_is_space` for query strings and forms.
 * Errors: ERR_INVAL (bad escape), ERR_LIMIT, ERR_NOMEM. */
MUST_USE int codec_percent_decode(struct span in, bool plus_is_space, struct buf *out);
/* Percent-encodes everything but RFC 3986 unreserved characters. */
MUST_USE int codec_percent_encode(struct span in, struct buf *out);
/* Whether all bytes are well-formed UTF-8 (RFC 3629: no surrogates, no overlong forms). */
bool codec_utf8_valid(struct span in);
/* Length (1..4) of the well-formed UTF-8 character `in` starts with; 0 when it starts with none. */
size_t codec_utf8_step(struct span in);
/* Whether any byte is above 127. */
bool codec_has_8bit(struct span in);

/* Bytes of the system's cryptographic source. Aborts when there is none. */
void codec_random(void *out, size_t len);

#define CODEC_ULID_LEN 26
/* A ULID: 48 bits of wall milliseconds and 80 random bits as 26 Crockford base32 characters, so
 * that identifiers sort by time. `out` is NUL-terminated. */
void codec_ulid(int64_t wall_ms, char out[CODEC_ULID_LEN + 1]);
/* Makes of a ULID the one that follows it in order, for a second one of the same millisecond. */
void codec_ulid_next(char ulid[CODEC_ULID_LEN + 1]);

/* FNV-1a 64, for hash tables of our own data; not for anything a peer could attack. */
uint64_t codec_fnv1a(struct span in);

#endif
