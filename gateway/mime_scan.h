/* What is looked at in a message before GMime sees it: what reading will cost, and encoded words it
 * gets wrong. Pure scans over bytes, linear. Private to gateway/mime. Thread: any. */
#ifndef HEAVE_GATEWAY_MIME_SCAN_H
#define HEAVE_GATEWAY_MIME_SCAN_H

#include "gateway/base/buf.h"

/* GMime allocates about 1.3 KiB per part and compares every line that begins with "--" with every
 * boundary that is open, while it reads, and cannot be stopped. This counts both beforehand; what
 * it lets through costs at most some MiB and some hundred milliseconds. It refuses address fields
 * that would take GMime's recursive parser through the end of the stack. Errors: ERR_LIMIT, with a
 * sentence. */
MUST_USE int mime_affordable(struct span message, struct err *err);

/* Copies a raw field value to `out` in a form GMime 3.2 decodes fully: it joins neighbouring base64
 * words of one charset before it decodes them and stops at the first padding, so that of
 * "=?UTF-8?B?w6Q=?= =?UTF-8?B?w7Y=?=" the second word is lost. A word after a padded one is
 * rewritten in the Q encoding, which is not joined. `out` may need four times the length. Errors:
 * ERR_LIMIT, ERR_NOMEM. */
MUST_USE int mime_words_repair(struct span value, struct buf *out);

#endif
