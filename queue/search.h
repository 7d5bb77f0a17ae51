/* Finding messages by what people know of them: the search index's records. Pure.
 *
 * A message can be found by its *terms*: every recipient's address, the domain of each ("@b.com"),
 * the address in its From field, its reverse-path, its Message-ID without <>, the address and the
 * name of the host that submitted it, and each of its tags. Terms are compared without regard to
 * ASCII case. The index holds, for each term, a hash and the message's id; what it gives are
 * candidates, to be compared with the message itself (search_matches()).
 *
 *     record:   hash (4 bytes) | ULID (16 bytes)                         numbers are big-endian
 *     tail:     records in the order of acceptance
 *     segment:  newest time (8, ms) | ends[SEARCH_SLOTS] (4 each) | records grouped by slot
 *
 * A slot is the first bits of the hash; ends[s] counts the records of slots 0..s, so the records of
 * one slot are found without reading the others. The lengths tell both forms apart: a tail's is a
 * multiple of SEARCH_RECORD_BYTES, a segment's is not.
 *
 * Must not know: Redis, loops. Thread: any; no state. */
#ifndef HEAVE_QUEUE_SEARCH_H
#define HEAVE_QUEUE_SEARCH_H

#include "gateway/base/buf.h"
#include "queue/message.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define SEARCH_RECORD_BYTES 20
#define SEARCH_SLOT_BITS 10
#define SEARCH_SLOTS (1u << SEARCH_SLOT_BITS)
#define SEARCH_HEAD_BYTES (8 + 4 * SEARCH_SLOTS)
#define SEARCH_ULID_LEN 26
#define SEARCH_TERM_MAX 1000 /* longer ones are not looked for */

/* What a term is looked for in. */
enum search_kind {
    SEARCH_ANY,
    SEARCH_ADDRESS, /* recipients, their domains, From, reverse-path */
    SEARCH_SENDER,  /* From, reverse-path */
    SEARCH_MESSAGE_ID,
    SEARCH_TAG,
    SEARCH_SOURCE, /* address or name of the host that submitted it */
};

/* The term a text means: without white space around it and without <>. Empty when there is none. */
struct span search_term(struct span text);
/* Of a term, whatever its case. */
uint32_t search_hash(struct span term);
uint32_t search_slot(uint32_t hash);
/* As it stands in a record. */
#define SEARCH_HASH_BYTES 4
void search_hash_bytes(uint32_t hash, char out[SEARCH_HASH_BYTES]);

/* Appends the records of all terms of the message, each once but for many recipients' domains,
 * which may come again. Appends nothing when the id is not one of queue_message_id().
 * Errors: ERR_LIMIT, ERR_NOMEM (the buf); then nothing is appended. */
MUST_USE int search_index(const struct message *message, struct buf *out);

/* Whether the message has this term where `kind` says. */
bool search_matches(const struct message *message, enum search_kind kind, struct span term);

/* Makes a segment of a tail. Errors: ERR_INVAL (no tail), ERR_LIMIT, ERR_NOMEM. */
MUST_USE int search_seal(struct span tail, struct buf *out);

/* The text of a record's ULID. False when it has not its 16 bytes. */
bool search_ulid(struct span packed, char out[SEARCH_ULID_LEN + 1]);

#endif
