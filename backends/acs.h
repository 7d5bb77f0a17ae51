/* The pure parts of the ACS backend, for its unit test; everything else of acs.c is behind
 * backend_acs_ops. Facts are of services.md section 2. Thread: any.
 *
 * Operation-Id. ACS lets the caller name an operation; sent again under the same name it is not
 * done twice, and it can be asked for. The name is a UUIDv5 of (message id, batch number, epoch,
 * the recipients of the request in order). After a lost answer everything of that is as it was, so
 * the next try bears the same name and asks first; after a definite failure the epoch is one more,
 * and after a partial success the recipients are others, so a new request bears a new name. */
#ifndef HEAVE_BACKENDS_ACS_H
#define HEAVE_BACKENDS_ACS_H

#include "backends/backend.h"
#include "gateway/base/buf.h"

#define ACS_SIGNATURE_MAX 64
#define ACS_UUID_MAX 37

/* Base64 of the SHA-256 of `bytes`: x-ms-content-sha256. */
void acs_content_hash(struct span bytes, char out[ACS_SIGNATURE_MAX]);
/* Base64 of HMAC-SHA256(key, text). `key` is decoded. */
void acs_hmac(struct span key, struct span text, char out[ACS_SIGNATURE_MAX]);
/* The signature of services.md 2.4: `date` as in x-ms-date, `host` with a port that is not 443,
 * `path` with its query exactly as sent. Errors: ERR_LIMIT, ERR_NOMEM. */
MUST_USE int acs_sign(struct span key, const char *method, struct span path, const char *date,
                      struct span host, const char *content_hash, char out[ACS_SIGNATURE_MAX]);
/* The name of the request that sends `delivery` to recipients from .. from + count - 1. */
void acs_operation_id(const struct delivery *delivery, size_t from, size_t count,
                      char out[ACS_UUID_MAX]);

/* How many of the recipients from .. from + count - 1 stand in To or Cc of `view`. */
size_t acs_visible_count(const struct mail_view *view, const struct delivery *delivery, size_t from,
                         size_t count);
/* The EmailMessage of services.md 2.1 as JSON. Recipients that stand in To or Cc of the message
 * stand there; the others are bcc. When none stands there, `to` is the one recipient if there is
 * but one, else `neutral_to`. The From of the message goes to replyTo when it is not `sender` and
 * there is no Reply-To, and to X-Original-From. Headers that ACS writes itself are left out (2.7).
 * Errors: ERR_LIMIT (`out`), ERR_NOMEM. */
MUST_USE int acs_message_write(const struct mail_view *view, const struct delivery *delivery,
                               size_t from, size_t count, const char *sender,
                               const char *neutral_to, struct buf *out);

#endif
