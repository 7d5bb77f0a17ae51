/* Time: reading clocks and writing dates.
 *
 * Must not know: loops (loop_now_ms() is the loop's own cached time). Thread: any. Monotonic
 * milliseconds measure; wall milliseconds (since 1970, UTC) are for records and people. */
#ifndef HEAVE_BASE_CLOCK_H
#define HEAVE_BASE_CLOCK_H

#include "gateway/base/buf.h"

#include <stdint.h>

int64_t clock_mono_ms(void);
int64_t clock_mono_us(void);
int64_t clock_wall_ms(void);

#define CLOCK_TEXT_MAX 40
/* RFC 5322 3.3: "Mon, 23 Nov 2026 12:00:00 +0000". */
void clock_rfc5322(int64_t wall_ms, char out[CLOCK_TEXT_MAX]);
/* RFC 9110 5.6.7 IMF-fixdate: "Mon, 23 Nov 2026 12:00:00 GMT". */
void clock_http(int64_t wall_ms, char out[CLOCK_TEXT_MAX]);
/* RFC 3339 with milliseconds: "2026-11-23T12:00:00.000Z". */
void clock_rfc3339(int64_t wall_ms, char out[CLOCK_TEXT_MAX]);
/* Reads the RFC 3339 form (offset or Z, optional fraction). Errors: ERR_INVAL. */
MUST_USE int clock_parse_rfc3339(struct span text, int64_t *out_wall_ms);
/* Reads an HTTP date (IMF-fixdate) to wall milliseconds. Errors: ERR_INVAL. */
MUST_USE int clock_parse_http(struct span text, int64_t *out_wall_ms);

#endif
