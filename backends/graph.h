/* The pure part of the Graph backend, for its unit test; everything else of graph.c is behind
 * backend_graph_ops. Facts are of services.md section 3. Thread: any.
 *
 * Mail goes in MIME form, the only one that keeps List-Unsubscribe, Auto-Submitted and Message-ID
 * (services.md 3.1). There is no envelope: who gets the message is what To, Cc and Bcc say. */
#ifndef HEAVE_BACKENDS_GRAPH_H
#define HEAVE_BACKENDS_GRAPH_H

#include "backends/backend.h"
#include "gateway/base/buf.h"

/* Writes the message as it goes to recipients from .. from + count - 1 through `mailbox`:
 *
 *   From, Sender   rewritten as for HVE (hve.h), so that sending as somebody else needs no right
 *   To, Cc         only the mailboxes of the message that are among these recipients, as they were
 * written Bcc            the other recipients; Graph takes it off To "undisclosed-recipients:;"
 * (RFC 5322 3.4) when neither To nor Cc is left: it needs no address, so nobody gets a copy for the
 * sake of the field
 *
 * Resent-To, Resent-Cc and Resent-Bcc are removed, because they could be taken for recipients. All
 * else stays byte for byte. Errors: ERR_LIMIT, ERR_NOMEM. */
MUST_USE int graph_message_write(const struct delivery *delivery, size_t from, size_t count,
                                 struct span mailbox, struct buf *out);

#endif
