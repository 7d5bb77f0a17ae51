#include "bench/sim/ledger.h"

#include "bench/sim/text.h"
#include "gateway/base/clock.h"

#include <inttypes.h>
#include <stdio.h>

#define TEXT_BLOCK_BYTES ((size_t)1 << 20)
#define ACCOUNTS_MAX 256
#define KEPT_TEXT_MAX 1000 /* of one Message-ID or address; both are shorter in practice */

struct text_block {
    struct text_block *next;
    size_t used;
    char bytes[];
};

struct transaction {
    const char *message_id;
    uint64_t number;
    int64_t at_ms;
    uint64_t bytes;
    uint16_t message_id_len;
    uint16_t account;
    uint8_t service;
};

struct entry {
    const char *recipient;
    uint32_t transaction; /* index */
    uint32_t len;
};

/* Open addressing; 0 marks a free slot, so a hash of 0 is stored as 1. */
struct hash_set {
    uint64_t *slots;
    size_t size; /* power of two, or 0 */
    size_t used;
};

struct ledger {
    size_t max_entries;
    struct text_block *blocks;
    struct entry *entries;
    size_t entry_count;
    size_t entry_room;
    struct transaction *transactions;
    size_t transaction_count;
    size_t transaction_room;
    uint64_t unlisted; /* recipients past max_entries */
    char *accounts[ACCOUNTS_MAX];
    size_t account_count;
    struct hash_set taken; /* (Message-ID, recipient) */
    struct hash_set known; /* (service, recipient) */
    uint64_t numbers[SIM_SERVICE_COUNT];
    struct ledger_counts counts[SIM_SERVICE_COUNT];
};

struct ledger *ledger_new(size_t max_entries)
{
    struct ledger *ledger = mem_zero(sizeof(*ledger));
    ledger->max_entries = max_entries;
    return ledger;
}

static void release_entries(struct ledger *ledger)
{
    while (ledger->blocks != NULL) {
        struct text_block *next = ledger->blocks->next;
        mem_free(ledger->blocks);
        ledger->blocks = next;
    }
    for (size_t i = 0; i < ledger->account_count; i++) {
        mem_free(ledger->accounts[i]);
    }
    mem_free(ledger->entries);
    mem_free(ledger->transactions);
    mem_free(ledger->taken.slots);
    mem_free(ledger->known.slots);
}

void ledger_free(struct ledger **ledger)
{
    if (*ledger == NULL) {
        return;
    }
    release_entries(*ledger);
    mem_free(*ledger);
    *ledger = NULL;
}

void ledger_reset(struct ledger *ledger)
{
    release_entries(ledger);
    struct ledger fresh = {.max_entries = ledger->max_entries};
    memcpy(fresh.numbers, ledger->numbers, sizeof(fresh.numbers));
    *ledger = fresh;
}

struct ledger_counts *ledger_counts(struct ledger *ledger, enum sim_service service)
{
    return &ledger->counts[service];
}

/* FNV-1a over the bytes with A-Z folded, continued from `hash`, so that several texts make one
 * hash. */
static uint64_t hash_folded(uint64_t hash, struct span text)
{
    for (size_t i = 0; i < text.len; i++) {
        unsigned char byte = (unsigned char)text.data[i];
        if (byte >= 'A' && byte <= 'Z') {
            byte = (unsigned char)(byte + 32);
        }
        hash = (hash ^ byte) * UINT64_C(1099511628211);
    }
    return (hash ^ 0xff) * UINT64_C(1099511628211);
}

/* FNV's low bits are weak; the table indexes by them. (The finaliser of MurmurHash3.) */
static uint64_t hash_mix(uint64_t hash)
{
    hash ^= hash >> 33;
    hash *= UINT64_C(0xff51afd7ed558ccd);
    hash ^= hash >> 33;
    return hash != 0 ? hash : 1;
}

#define HASH_START UINT64_C(14695981039346656037)

/* Returns whether the hash was new. */
static bool set_place(uint64_t *slots, size_t size, uint64_t hash)
{
    size_t slot = (size_t)hash & (size - 1);
    while (slots[slot] != 0) {
        if (slots[slot] == hash) {
            return false;
        }
        slot = (slot + 1) & (size - 1);
    }
    slots[slot] = hash;
    return true;
}

static bool set_add(struct hash_set *set, uint64_t hash)
{
    if (set->used * 2 >= set->size) {
        size_t size = set->size != 0 ? set->size * 2 : 4096;
        uint64_t *slots = mem_zero(size * sizeof(*slots));
        for (size_t i = 0; i < set->size; i++) {
            if (set->slots[i] != 0) {
                (void)set_place(slots, size, set->slots[i]); /* known to be new */
            }
        }
        mem_free(set->slots);
        set->slots = slots;
        set->size = size;
    }
    bool is_new = set_place(set->slots, set->size, hash);
    set->used += is_new ? 1 : 0;
    return is_new;
}

static const char *keep_text(struct ledger *ledger, struct span text)
{
    struct text_block *block = ledger->blocks;
    if (block == NULL || TEXT_BLOCK_BYTES - block->used < text.len) {
        block = mem_alloc(sizeof(*block) + TEXT_BLOCK_BYTES);
        block->next = ledger->blocks;
        block->used = 0;
        ledger->blocks = block;
    }
    char *place = block->bytes + block->used;
    memcpy(place, text.data, text.len);
    block->used += text.len;
    return place;
}

static struct span cut_text(struct span text)
{
    return span_make(text.data, text.len < KEPT_TEXT_MAX ? text.len : KEPT_TEXT_MAX);
}

/* The index of an account's name; the last place collects whatever comes after the table is full.
 */
static uint16_t intern_account(struct ledger *ledger, struct span account)
{
    for (size_t i = 0; i < ledger->account_count; i++) {
        if (span_eq(span_of(ledger->accounts[i]), account)) {
            return (uint16_t)i;
        }
    }
    if (ledger->account_count == ACCOUNTS_MAX) {
        return ACCOUNTS_MAX - 1;
    }
    ledger->accounts[ledger->account_count] = mem_dup(account);
    return (uint16_t)ledger->account_count++;
}

static void *grow(void *array, size_t *room, size_t count, size_t item_bytes)
{
    if (count < *room) {
        return array;
    }
    *room = *room != 0 ? *room * 2 : 1024;
    void *bigger = mem_realloc_try(array, *room * item_bytes);
    ASSERT(bigger != NULL);
    return bigger;
}

static uint32_t add_transaction(struct ledger *ledger, const struct ledger_message *message,
                                struct span message_id, uint64_t number)
{
    ledger->transactions = grow(ledger->transactions, &ledger->transaction_room,
                                ledger->transaction_count, sizeof(*ledger->transactions));
    ledger->transactions[ledger->transaction_count] = (struct transaction){
        .message_id = keep_text(ledger, message_id),
        .message_id_len = (uint16_t)message_id.len,
        .number = number,
        .at_ms = clock_wall_ms(),
        .bytes = message->bytes,
        .account = intern_account(ledger, message->account),
        .service = (uint8_t)message->service,
    };
    return (uint32_t)ledger->transaction_count++;
}

static void add_entry(struct ledger *ledger, uint32_t transaction, struct span recipient)
{
    ledger->entries = grow(ledger->entries, &ledger->entry_room, ledger->entry_count,
                           sizeof(*ledger->entries));
    ledger->entries[ledger->entry_count++] = (struct entry){
        .recipient = keep_text(ledger, recipient),
        .len = (uint32_t)recipient.len,
        .transaction = transaction,
    };
}

uint64_t ledger_accept(struct ledger *ledger, const struct ledger_message *message)
{
    struct ledger_counts *counts = &ledger->counts[message->service];
    uint64_t number = ++ledger->numbers[message->service];
    char made[64];
    struct span message_id = cut_text(message->message_id);
    if (message_id.len == 0) {
        int len = snprintf(made, sizeof(made), "<%" PRIu64 "@%s.sim>", number,
                           sim_service_name(message->service));
        message_id = span_make(made, (size_t)len);
    }
    counts->transactions++;
    counts->recipients += message->recipient_count;
    if (message->recipient_count > counts->max_recipients) {
        counts->max_recipients = message->recipient_count;
    }
    bool listed = ledger->entry_count + message->recipient_count <= ledger->max_entries;
    uint32_t transaction = listed ? add_transaction(ledger, message, message_id, number) : 0;
    uint64_t message_hash = hash_folded(HASH_START, message_id);
    uint64_t service_hash = hash_folded(HASH_START, span_of(sim_service_name(message->service)));
    for (size_t i = 0; i < message->recipient_count; i++) {
        struct span recipient = cut_text(message->recipients[i]);
        if (!set_add(&ledger->taken, hash_mix(hash_folded(message_hash, recipient)))) {
            counts->duplicates++;
        }
        if (set_add(&ledger->known, hash_mix(hash_folded(service_hash, recipient)))) {
            counts->distinct_recipients++;
        }
        if (listed) {
            add_entry(ledger, transaction, recipient);
        } else {
            ledger->unlisted++;
        }
    }
    return number;
}

static bool entry_matches(const struct ledger *ledger, const struct entry *entry,
                          const struct ledger_filter *filter)
{
    const struct transaction *transaction = &ledger->transactions[entry->transaction];
    if (filter->service.len > 0 &&
        !span_eq(filter->service,
                 span_of(sim_service_name((enum sim_service)transaction->service)))) {
        return false;
    }
    if (filter->message_id.len > 0 &&
        !span_eq(filter->message_id,
                 span_make(transaction->message_id, transaction->message_id_len))) {
        return false;
    }
    return filter->recipient.len == 0 ||
           span_ieq(filter->recipient, span_make(entry->recipient, entry->len));
}

static int write_entry(const struct ledger *ledger, const struct entry *entry, struct buf *out)
{
    const struct transaction *transaction = &ledger->transactions[entry->transaction];
    const char *service = sim_service_name((enum sim_service)transaction->service);
    char at[CLOCK_TEXT_MAX];
    clock_rfc3339(transaction->at_ms, at);
    int result = buf_printf(out, "{\"service\":\"%s\",\"account\":", service);
    if (result == 0) {
        result = text_json(out, span_of(ledger->accounts[transaction->account]));
    }
    if (result == 0) {
        result = buf_append(out, SPAN_LIT(",\"message_id\":"));
    }
    if (result == 0) {
        result = text_json(out, span_make(transaction->message_id, transaction->message_id_len));
    }
    if (result == 0) {
        result = buf_append(out, SPAN_LIT(",\"recipient\":"));
    }
    if (result == 0) {
        result = text_json(out, span_make(entry->recipient, entry->len));
    }
    if (result == 0) {
        result = buf_printf(out,
                            ",\"transaction\":%" PRIu64 ",\"bytes\":%" PRIu64 ",\"at\":\"%s\"}\n",
                            transaction->number, transaction->bytes, at);
    }
    return result;
}

int ledger_write(const struct ledger *ledger, const struct ledger_filter *filter, struct buf *out,
                 uint64_t *out_next)
{
    uint64_t written = 0;
    uint64_t next = 0;
    for (size_t i = (size_t)filter->offset; i < ledger->entry_count; i++) {
        if (!entry_matches(ledger, &ledger->entries[i], filter)) {
            continue;
        }
        if (written == filter->limit) {
            next = i;
            break;
        }
        int result = write_entry(ledger, &ledger->entries[i], out);
        if (result != 0) {
            return result;
        }
        written++;
    }
    *out_next = next;
    return 0;
}

static int write_service(const struct ledger *ledger, enum sim_service service, struct buf *out)
{
    const struct ledger_counts *c = &ledger->counts[service];
    const struct {
        const char *name;
        uint64_t value;
    } rows[] = {
        {"transactions", c->transactions},
        {"recipients", c->recipients},
        {"max_recipients", c->max_recipients},
        {"duplicates", c->duplicates},
        {"rejected", c->rejected},
        {"throttled", c->throttled},
        {"auth_failures", c->auth_failures},
        {"distinct_recipients", c->distinct_recipients},
        {"requests", c->requests},
        {"requests_during_retry_after", c->requests_during_retry_after},
        {"requests_on_the_way", c->requests_on_the_way},
        {"lost_answers", c->lost_answers},
        {"repeated_operations", c->repeated_operations},
        {"issued", c->issued},
    };
    int result = buf_printf(out, "\"%s\":{", sim_service_name(service));
    for (size_t i = 0; result == 0 && i < sizeof(rows) / sizeof(rows[0]); i++) {
        result = buf_printf(out, "%s\"%s\":%" PRIu64, i > 0 ? "," : "", rows[i].name,
                            rows[i].value);
    }
    return result == 0 ? buf_append(out, SPAN_LIT("},")) : result;
}

int ledger_summary(const struct ledger *ledger, struct buf *out)
{
    int result = buf_append_byte(out, '{');
    for (size_t i = 0; result == 0 && i < SIM_SERVICE_COUNT; i++) {
        result = write_service(ledger, (enum sim_service)i, out);
    }
    if (result == 0) {
        result = buf_printf(out, "\"listed\":%zu,\"unlisted\":%" PRIu64 "}\n", ledger->entry_count,
                            ledger->unlisted);
    }
    return result;
}

int ledger_find(const struct ledger *ledger, struct span message_id, uint64_t index,
                enum sim_service *out_service, uint64_t *out_transaction)
{
    for (size_t i = 0; i < ledger->transaction_count; i++) {
        const struct transaction *transaction = &ledger->transactions[i];
        if (!span_eq(message_id, span_make(transaction->message_id, transaction->message_id_len))) {
            continue;
        }
        if (index == 0) {
            *out_service = (enum sim_service)transaction->service;
            *out_transaction = transaction->number;
            return 0;
        }
        index--;
    }
    return ERR_NOTFOUND;
}
