/* The identity rewriting of High Volume Email, for its unit test; everything else of hve.c is
 * behind backend_hve_ops.
 *
 * HVE takes mail from its own account only: MAIL FROM and the From field must both be the account
 * (services.md 0.1 point 4, 1.4: 5.7.62 and 5.6.241). Pure; thread: any. */
#ifndef HEAVE_BACKENDS_HVE_H
#define HEAVE_BACKENDS_HVE_H

#include "gateway/base/buf.h"

/* Writes the header section of `message` with `account` as its sender to `out_header`; `*out_rest`
 * is what follows it in `message`, untouched. In the header (design.md section 6):
 *
 *   From          one mailbox: the display name of the first mailbox that was there, and the
 * account X-Original-From   the value of From as it was; not added when From was the account
 * already Reply-To      the value of From as it was, when there was no Reply-To and From held an
 * address; not added when From was the account already Sender        removed (and Resent-Sender is
 * left: it says who re-sent, not who sends)
 *
 * Every other field stays byte for byte and in order; the new fields stand where From stood, or in
 * front. Errors: ERR_LIMIT, ERR_NOMEM. */
MUST_USE int hve_rewrite(struct span message, struct span account, struct buf *out_header,
                         struct span *out_rest);

#endif
