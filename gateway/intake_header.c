#include "gateway/intake_header.h"

#include "queue/fields.h"

#include <ctype.h>

#define SUBJECT_BYTES_MAX 200
#define TAG_BYTES_MAX 64
#define TAGS_BYTES_MAX 1300 /* of all tags of a message */

/* Every mailbox of every From field must be one the client may use: a reader may show any of them.
 * For a client that is bound to senders a From without a readable mailbox is none of them. */
static void read_from(struct span value, const struct policy_client *client, struct arena *arena,
                      struct intake_header *facts)
{
    struct mailbox mailbox;
    bool readable = false;
    while (mailbox_next(&value, arena, &mailbox)) {
        readable = true;
        facts->from = facts->from.len > 0 ? facts->from : mailbox.address;
        facts->foreign_from = facts->foreign_from ||
                              !policy_sender_allowed(client, mailbox.address);
    }
    facts->has_from = true;
    facts->foreign_from = facts->foreign_from || (!readable && client->conf->from_count > 0);
}

static struct span cut_subject(struct span value, struct arena *arena)
{
    struct span trimmed = span_trim(value);
    if (trimmed.len > SUBJECT_BYTES_MAX) {
        trimmed.len = SUBJECT_BYTES_MAX;
        while (trimmed.len > 0 && ((unsigned char)trimmed.data[trimmed.len] & 0xc0) == 0x80) {
            trimmed.len--;
        }
    }
    struct span copy = arena_dup(arena, trimmed);
    for (size_t i = 0; i < copy.len; i++) {
        char *byte = (char *)(uintptr_t)(copy.data + i);
        if (iscntrl((unsigned char)*byte)) {
            *byte = ' ';
        }
    }
    return copy;
}

/* A field may hold several tags with commas between; what is no tag is left out. */
static void take_tags(struct span value, struct arena *arena, struct intake_header *facts)
{
    while (value.len > 0) {
        struct span tag = span_trim(span_cut(&value, ','));
        bool good = tag.len > 0 && tag.len <= TAG_BYTES_MAX &&
                    facts->tags.len + tag.len < TAGS_BYTES_MAX;
        for (size_t i = 0; i < tag.len; i++) {
            good = good && isgraph((unsigned char)tag.data[i]);
        }
        char *longer = good ? arena_alloc(arena, facts->tags.len + tag.len + 1) : NULL;
        if (longer == NULL) {
            continue;
        }
        if (facts->tags.len > 0) {
            memcpy(longer, facts->tags.data, facts->tags.len);
        }
        memcpy(longer + facts->tags.len, tag.data, tag.len);
        longer[facts->tags.len + tag.len] = '\n';
        facts->tags = span_make(longer, facts->tags.len + tag.len + 1);
    }
}

static bool take_private_field(const struct field *field, struct arena *arena,
                               struct intake_header *facts)
{
    if (span_ieq(field->name, SPAN_LIT("Bcc")) || span_ieq(field->name, SPAN_LIT("Resent-Bcc"))) {
        facts->has_private = true;
        return true;
    }
    if (!span_istarts(field->name, SPAN_LIT("X-Heave-"))) {
        return false;
    }
    facts->has_private = true;
    struct span value = span_trim(field->value);
    if (span_ieq(field->name, SPAN_LIT("X-Heave-Lane"))) {
        facts->lane = value;
    } else if (span_ieq(field->name, SPAN_LIT("X-Heave-Idempotency-Key"))) {
        facts->idempotency_key = value;
    } else if (span_ieq(field->name, SPAN_LIT("X-Heave-Dedup-Key"))) {
        facts->dedup_key = value;
    } else if (span_ieq(field->name, SPAN_LIT("X-Heave-Send-At"))) {
        facts->send_at = value;
    } else if (span_ieq(field->name, SPAN_LIT("X-Heave-Tag"))) {
        take_tags(value, arena, facts);
    }
    return true;
}

void intake_header_read(struct span header, const struct policy_client *client, struct arena *arena,
                        struct intake_header *facts)
{
    struct field field;
    while (fields_next(&header, &field)) {
        if (take_private_field(&field, arena, facts)) {
            continue;
        }
        if (span_ieq(field.name, SPAN_LIT("Received"))) {
            facts->received++;
        } else if (span_ieq(field.name, SPAN_LIT("From"))) {
            read_from(field.value, client, arena, facts);
        } else if (span_ieq(field.name, SPAN_LIT("Date"))) {
            facts->has_date = true;
        } else if (span_ieq(field.name, SPAN_LIT("Message-ID"))) {
            facts->message_id = arena_dup(arena, span_trim(field.value));
        } else if (span_ieq(field.name, SPAN_LIT("Subject"))) {
            facts->subject = cut_subject(field.value, arena);
            facts->whole_subject = field.value;
        }
    }
}
