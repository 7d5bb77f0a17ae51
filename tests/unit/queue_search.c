/* The records of the search index: terms, hashes, the form of tails and segments. */
#include "queue/search.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>

#include <cmocka.h>

#define ID "01JDF3Q8ZK5W1T7R9N2B4C6D8E-1f"

static const char *const people[] = {"Anna@Contoso.com", "bert@fabrikam.example", "c@contoso.com"};

struct sample {
    struct recipient recipients[3];
    struct batch batch;
    struct message message;
};

static struct message *sample_fill(struct sample *sample)
{
    *sample = (struct sample){0};
    for (size_t i = 0; i < 3; i++) {
        sample->recipients[i].address = span_of(people[i]);
    }
    sample->batch = (struct batch){.recipients = sample->recipients, .recipient_count = 3};
    sample->message = (struct message){
        .id = SPAN_LIT(ID),
        .header_from = SPAN_LIT("erp@contoso.com"),
        .reverse_path = SPAN_LIT("bounce@contoso.com"),
        .message_id = SPAN_LIT("<4711@ERP.contoso.com>"),
        .source = SPAN_LIT("192.0.2.1 erp.contoso.com"),
        .tags = SPAN_LIT("invoice\nNovember\n"),
        .batches = &sample->batch,
        .batch_count = 1,
    };
    return &sample->message;
}

/* How often the hash of `text` stands in the records; each must name the message. */
static size_t found(struct span records, const char *text)
{
    char hash[SEARCH_HASH_BYTES];
    char ulid[SEARCH_ULID_LEN + 1];
    size_t count = 0;
    search_hash_bytes(search_hash(search_term(span_of(text))), hash);
    assert_int_equal(records.len % SEARCH_RECORD_BYTES, 0);
    for (size_t at = 0; at < records.len; at += SEARCH_RECORD_BYTES) {
        if (memcmp(records.data + at, hash, SEARCH_HASH_BYTES) == 0) {
            assert_true(search_ulid(span_make(records.data + at + SEARCH_HASH_BYTES,
                                              SEARCH_RECORD_BYTES - SEARCH_HASH_BYTES),
                                    ulid));
            assert_memory_equal(ulid, ID, SEARCH_ULID_LEN);
            count++;
        }
    }
    return count;
}

static void test_index(void **state)
{
    (void)state;
    static const char *const terms[] = {
        "anna@contoso.com",   "BERT@fabrikam.example",  "c@contoso.com",
        "@contoso.com",       "@Fabrikam.Example",      "erp@contoso.com",
        "bounce@contoso.com", "<4711@erp.contoso.com>", "4711@erp.contoso.com",
        "192.0.2.1",          " erp.contoso.com ",      "invoice",
        "november",
    };
    struct sample sample;
    struct buf records;
    buf_init(&records, 4096);
    assert_int_equal(search_index(sample_fill(&sample), &records), 0);
    /* The domain of two recipients and both ways to write the Message-ID are one term each. */
    assert_int_equal(buf_len(&records) / SEARCH_RECORD_BYTES, 12);
    for (size_t i = 0; i < sizeof(terms) / sizeof(terms[0]); i++) {
        assert_int_equal(found(buf_span(&records), terms[i]), 1);
    }
    assert_int_equal(found(buf_span(&records), "contoso.com"), 0);
    buf_release(&records);
}

static void test_index_limits(void **state)
{
    (void)state;
    struct sample sample;
    struct buf records;
    struct message *message = sample_fill(&sample);
    buf_init(&records, 5 * SEARCH_RECORD_BYTES);
    assert_int_equal(search_index(message, &records), ERR_LIMIT);
    assert_int_equal(buf_len(&records), 0);
    static const char *const bad[] = {"", "1", "91JDF3Q8ZK5W1T7R9N2B4C6D8E-1",
                                      "01JDF3Q8ZK5W1T7R9N2B4C6D8U-1", "01JDF3Q8ZK5W1T7R9N2B4C6D8E"};
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        message->id = span_of(bad[i]);
        assert_int_equal(search_index(message, &records), 0);
        assert_int_equal(buf_len(&records), 0);
    }
    char ulid[SEARCH_ULID_LEN + 1];
    assert_false(search_ulid(SPAN_LIT("short"), ulid));
    buf_release(&records);
}

static void test_matches(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        bool any, address, sender, message_id, tag, source;
    } rows[] = {
        {"ANNA@contoso.com", true, true, false, false, false, false},
        {"@fabrikam.example", true, true, false, false, false, false},
        {"@brikam.example", false, false, false, false, false, false},
        {"erp@contoso.com", true, true, true, false, false, false},
        {"<Bounce@contoso.com>", true, true, true, false, false, false},
        {"4711@erp.contoso.com", true, false, false, true, false, false},
        {"INVOICE", true, false, false, false, true, false},
        {"192.0.2.1", true, false, false, false, false, true},
        {"erp.contoso.com", true, false, false, false, false, true},
        {"", false, false, false, false, false, false},
        {"<>", false, false, false, false, false, false},
        {"nobody@contoso.com", false, false, false, false, false, false},
    };
    struct sample sample;
    const struct message *message = sample_fill(&sample);
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        struct span term = search_term(span_of(rows[i].text));
        assert_int_equal(search_matches(message, SEARCH_ANY, term), rows[i].any);
        assert_int_equal(search_matches(message, SEARCH_ADDRESS, term), rows[i].address);
        assert_int_equal(search_matches(message, SEARCH_SENDER, term), rows[i].sender);
        assert_int_equal(search_matches(message, SEARCH_MESSAGE_ID, term), rows[i].message_id);
        assert_int_equal(search_matches(message, SEARCH_TAG, term), rows[i].tag);
        assert_int_equal(search_matches(message, SEARCH_SOURCE, term), rows[i].source);
    }
}

static uint64_t number_at(const char *at, size_t bytes)
{
    uint64_t value = 0;
    for (size_t i = 0; i < bytes; i++) {
        value = value << 8 | (unsigned char)at[i];
    }
    return value;
}

/* Every record of the tail stands in its slot, in the tail's order. */
static void test_seal(void **state)
{
    (void)state;
    enum { MESSAGES = 3000 };
    struct buf tail;
    struct buf segment;
    buf_init(&tail, (size_t)1 << 20);
    buf_init(&segment, (size_t)1 << 20);
    for (size_t i = 0; i < MESSAGES; i++) {
        char id[40];
        char address[40];
        (void)snprintf(id, sizeof(id), "01JDF3Q8%018zu-0", i);
        (void)snprintf(address, sizeof(address), "user%zu@contoso.com", i);
        struct recipient recipient = {.address = span_of(address)};
        struct batch batch = {.recipients = &recipient, .recipient_count = 1};
        struct message message = {
            .id = span_of(id), .tags = SPAN_LIT("bulk"), .batches = &batch, .batch_count = 1};
        assert_int_equal(search_index(&message, &tail), 0);
    }
    assert_int_equal(buf_len(&tail), MESSAGES * 3 * SEARCH_RECORD_BYTES);
    assert_int_equal(search_seal(buf_span(&tail), &segment), 0);
    assert_int_equal(buf_len(&segment), SEARCH_HEAD_BYTES + buf_len(&tail));
    assert_int_not_equal(buf_len(&segment) % SEARCH_RECORD_BYTES, 0);
    const char *data = buf_span(&segment).data;
    const char *records = data + SEARCH_HEAD_BYTES;
    char last[SEARCH_ULID_LEN + 1];
    assert_true(search_ulid(span_make(buf_span(&tail).data + buf_len(&tail) - 16, 16), last));
    assert_int_equal(number_at(data, 8), number_at(buf_span(&tail).data + buf_len(&tail) - 16, 6));
    size_t at = 0;
    size_t widest = 0;
    for (uint32_t slot = 0; slot < SEARCH_SLOTS; slot++) {
        size_t end = number_at(data + 8 + 4 * slot, 4);
        const char *before = NULL;
        size_t width = 0;
        for (; at < end; at++) {
            const char *record = records + at * SEARCH_RECORD_BYTES;
            uint32_t hash = (uint32_t)number_at(record, 4);
            assert_int_equal(search_slot(hash), slot);
            if (before != NULL && memcmp(before, record, 4) == 0) {
                assert_true(memcmp(before + 4, record + 4, 16) < 0);
            }
            before = record;
            width += hash != search_hash(SPAN_LIT("bulk")) &&
                             hash != search_hash(SPAN_LIT("@contoso.com"))
                         ? 1
                         : 0;
        }
        widest = width > widest ? width : widest;
    }
    assert_int_equal(at, 3 * MESSAGES);
    /* 3 on average: addresses that differ in a few digits are spread all the same. */
    assert_in_range(widest, 5, 20);
    buf_reset(&segment);
    assert_int_equal(search_seal(SPAN_LIT(""), &segment), ERR_INVAL);
    assert_int_equal(search_seal(SPAN_LIT("123456789012345678901"), &segment), ERR_INVAL);
    buf_release(&segment);
    buf_init(&segment, 1000);
    assert_int_equal(search_seal(buf_span(&tail), &segment), ERR_LIMIT);
    buf_release(&segment);
    buf_release(&tail);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_index),
        cmocka_unit_test(test_index_limits),
        cmocka_unit_test(test_matches),
        cmocka_unit_test(test_seal),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
