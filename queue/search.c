/* The records of the search index; search.h has their layout. */
#include "queue/search.h"

#include "queue/fields.h"

#include <assert.h>

enum {
    ULID_BYTES = 16,
    SEEN_HASHES = 64, /* power of two */
};

static_assert(SEARCH_HASH_BYTES + ULID_BYTES == SEARCH_RECORD_BYTES, "a record is hash and id");
static_assert(SEARCH_HEAD_BYTES % SEARCH_RECORD_BYTES != 0,
              "lengths tell tails and segments apart");

struct span search_term(struct span text)
{
    struct span term = span_trim(text);
    if (span_starts(term, SPAN_LIT("<")) && span_ends(term, SPAN_LIT(">"))) {
        term = span_trim(span_make(term.data + 1, term.len - 2));
    }
    return term;
}

/* FNV-1a over lower-case bytes, then the finaliser of MurmurHash3: slots are the first bits, and
 * those of FNV alone are uneven for texts that differ in their last bytes only. */
uint32_t search_hash(struct span term)
{
    uint64_t hash = 14695981039346656037u;
    for (size_t i = 0; i < term.len; i++) {
        unsigned char byte = (unsigned char)term.data[i];
        byte = byte >= 'A' && byte <= 'Z' ? (unsigned char)(byte | 0x20) : byte;
        hash = (hash ^ byte) * 1099511628211u;
    }
    hash = (hash ^ (hash >> 33)) * 0xff51afd7ed558ccdu;
    hash = (hash ^ (hash >> 33)) * 0xc4ceb9fe1a85ec53u;
    return (uint32_t)(hash >> 32);
}

uint32_t search_slot(uint32_t hash)
{
    return hash >> (32 - SEARCH_SLOT_BITS);
}

static void put_u32(char *at, uint32_t value)
{
    for (int i = 0; i < 4; i++) {
        at[i] = (char)(unsigned char)(value >> (24 - 8 * i));
    }
}

static uint32_t get_u32(const char *at)
{
    uint32_t value = 0;
    for (int i = 0; i < 4; i++) {
        value = value << 8 | (unsigned char)at[i];
    }
    return value;
}

void search_hash_bytes(uint32_t hash, char out[SEARCH_HASH_BYTES])
{
    put_u32(out, hash);
}

/* A ULID is 128 bits, most significant first, five to a character (https://github.com/ulid/spec);
 * its 26 characters have room for 130, so the first is at most '7'. */
static const char digits[] = "0123456789ABCDEFGHJKMNPQRSTVWXYZ";

static bool ulid_pack(struct span id, char out[ULID_BYTES])
{
    if (id.len < SEARCH_ULID_LEN + 2 || id.data[SEARCH_ULID_LEN] != '-' || id.data[0] > '7') {
        return false;
    }
    uint32_t bits = 0;
    int have = -2; /* the two bits that are always 0 */
    size_t at = 0;
    for (size_t i = 0; i < SEARCH_ULID_LEN; i++) {
        const char *found = id.data[i] != '\0' ? strchr(digits, id.data[i]) : NULL;
        if (found == NULL) {
            return false;
        }
        bits = (bits << 5 | (uint32_t)(found - digits)) & 0xffff;
        have += 5;
        if (have >= 8) {
            have -= 8;
            out[at++] = (char)(unsigned char)(bits >> have);
        }
    }
    return true;
}

bool search_ulid(struct span packed, char out[SEARCH_ULID_LEN + 1])
{
    if (packed.len != ULID_BYTES) {
        return false;
    }
    uint32_t bits = 0;
    int have = 2;
    size_t at = 0;
    for (size_t i = 0; i < ULID_BYTES; i++) {
        bits = (bits << 8 | (unsigned char)packed.data[i]) & 0xffff;
        have += 8;
        while (have >= 5) {
            have -= 5;
            out[at++] = digits[bits >> have & 31];
        }
    }
    out[at] = '\0';
    return true;
}

/* Terms of one message on their way into the index. */
struct indexing {
    struct buf *out;
    char ulid[ULID_BYTES];
    uint32_t
        seen[SEEN_HASHES]; /* hashes that were written, each at its own place; others forgotten */
    bool used[SEEN_HASHES];
    int status;
};

static void add_term(struct indexing *indexing, struct span term)
{
    if (term.len == 0 || indexing->status != 0) {
        return;
    }
    uint32_t hash = search_hash(term);
    size_t place = hash % SEEN_HASHES;
    if (indexing->used[place] && indexing->seen[place] == hash) {
        return;
    }
    indexing->used[place] = true;
    indexing->seen[place] = hash;
    char *room = NULL;
    indexing->status = buf_reserve(indexing->out, SEARCH_RECORD_BYTES, &room);
    if (indexing->status == 0) {
        put_u32(room, hash);
        memcpy(room + SEARCH_HASH_BYTES, indexing->ulid, ULID_BYTES);
        buf_commit(indexing->out, SEARCH_RECORD_BYTES);
    }
}

/* "@domain" of an address; empty when it has none. */
static struct span domain_term(struct span address)
{
    struct span domain = address_domain(address);
    return domain.len > 0 ? span_make(domain.data - 1, domain.len + 1) : (struct span){0};
}

static void add_recipients(struct indexing *indexing, const struct message *message)
{
    struct span last_domain = {0};
    for (size_t b = 0; b < message->batch_count; b++) {
        const struct batch *batch = &message->batches[b];
        for (size_t i = 0; i < batch->recipient_count; i++) {
            struct span domain = domain_term(batch->recipients[i].address);
            add_term(indexing, batch->recipients[i].address);
            if (!span_eq(domain, last_domain)) {
                add_term(indexing, domain);
                last_domain = domain;
            }
        }
    }
}

int search_index(const struct message *message, struct buf *out)
{
    struct indexing indexing = {.out = out};
    size_t before = buf_len(out);
    if (!ulid_pack(message->id, indexing.ulid)) {
        return 0;
    }
    add_term(&indexing, search_term(message->header_from));
    add_term(&indexing, search_term(message->reverse_path));
    add_term(&indexing, search_term(message->message_id));
    struct span name = message->source;
    add_term(&indexing, span_cut(&name, ' '));
    add_term(&indexing, search_term(name));
    struct span tags = message->tags;
    while (tags.len > 0) {
        add_term(&indexing, search_term(span_cut(&tags, '\n')));
    }
    add_recipients(&indexing, message);
    if (indexing.status != 0) {
        buf_truncate(out, before);
    }
    return indexing.status;
}

static bool is_term(struct span text, struct span term)
{
    return span_ieq(search_term(text), term);
}

static bool has_sender(const struct message *message, struct span term)
{
    return is_term(message->header_from, term) || is_term(message->reverse_path, term);
}

static bool has_recipient(const struct message *message, struct span term)
{
    bool domain = span_starts(term, SPAN_LIT("@"));
    for (size_t b = 0; b < message->batch_count; b++) {
        const struct batch *batch = &message->batches[b];
        for (size_t i = 0; i < batch->recipient_count; i++) {
            struct span address = batch->recipients[i].address;
            if (span_ieq(domain ? domain_term(address) : address, term)) {
                return true;
            }
        }
    }
    return false;
}

static bool has_tag(const struct message *message, struct span term)
{
    struct span tags = message->tags;
    while (tags.len > 0) {
        if (is_term(span_cut(&tags, '\n'), term)) {
            return true;
        }
    }
    return false;
}

static bool has_source(const struct message *message, struct span term)
{
    struct span name = message->source;
    struct span address = span_cut(&name, ' ');
    return span_ieq(address, term) || is_term(name, term);
}

bool search_matches(const struct message *message, enum search_kind kind, struct span term)
{
    if (term.len == 0) {
        return false;
    }
    switch (kind) {
    case SEARCH_ANY:
        return has_sender(message, term) || has_recipient(message, term) ||
               is_term(message->message_id, term) || has_tag(message, term) ||
               has_source(message, term);
    case SEARCH_ADDRESS:
        return has_sender(message, term) || has_recipient(message, term);
    case SEARCH_SENDER:
        return has_sender(message, term);
    case SEARCH_MESSAGE_ID:
        return is_term(message->message_id, term);
    case SEARCH_TAG:
        return has_tag(message, term);
    case SEARCH_SOURCE:
        return has_source(message, term);
    }
    UNREACHABLE();
}

/* Milliseconds are the first 48 bits of a ULID. */
static uint64_t record_time_ms(const char *record)
{
    uint64_t high = get_u32(record + SEARCH_HASH_BYTES);
    uint64_t low = get_u32(record + SEARCH_HASH_BYTES + 4) >> 16;
    return high << 16 | low;
}

/* A counting sort by slot, which keeps the order inside a slot. */
int search_seal(struct span tail, struct buf *out)
{
    size_t count = tail.len / SEARCH_RECORD_BYTES;
    if (count == 0 || tail.len % SEARCH_RECORD_BYTES != 0 || count > UINT32_MAX) {
        return ERR_INVAL;
    }
    char *room = NULL;
    int status = buf_reserve(out, SEARCH_HEAD_BYTES + tail.len, &room);
    if (status != 0) {
        return status;
    }
    uint32_t ends[SEARCH_SLOTS] = {0};
    uint64_t newest_ms = 0;
    for (size_t i = 0; i < count; i++) {
        const char *record = tail.data + i * SEARCH_RECORD_BYTES;
        uint64_t time_ms = record_time_ms(record);
        newest_ms = time_ms > newest_ms ? time_ms : newest_ms;
        ends[search_slot(get_u32(record))]++;
    }
    put_u32(room, (uint32_t)(newest_ms >> 32));
    put_u32(room + 4, (uint32_t)newest_ms);
    uint32_t sum = 0;
    for (size_t slot = 0; slot < SEARCH_SLOTS; slot++) {
        sum += ends[slot];
        put_u32(room + 8 + 4 * slot, sum);
        ends[slot] = sum - ends[slot]; /* from here on: where the slot's next record goes */
    }
    for (size_t i = 0; i < count; i++) {
        const char *record = tail.data + i * SEARCH_RECORD_BYTES;
        size_t place = ends[search_slot(get_u32(record))]++;
        memcpy(room + SEARCH_HEAD_BYTES + place * SEARCH_RECORD_BYTES, record, SEARCH_RECORD_BYTES);
    }
    buf_commit(out, SEARCH_HEAD_BYTES + tail.len);
    return 0;
}
