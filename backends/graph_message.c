#include "backends/graph.h"
#include "backends/hve.h"
#include "queue/fields.h"
#include "queue/message.h"

#define LIST_ARENA_BYTES ((size_t)1 << 20)

struct recipients {
    const struct span *list;
    size_t count;
    bool shown[BATCH_RECIPIENTS_MAX]; /* stands in To or Cc already */
};

/* Index of the recipient with that address that is not shown yet; count when there is none. */
static size_t recipient_find(const struct recipients *recipients, struct span address)
{
    for (size_t i = 0; i < recipients->count; i++) {
        if (!recipients->shown[i] && address_same(recipients->list[i], address)) {
            return i;
        }
    }
    return recipients->count;
}

static int append_item(struct buf *out, const char *name, bool *any, struct span item)
{
    int status = *any ? buf_append(out, SPAN_LIT(",\r\n ")) : buf_printf(out, "%s: ", name);
    *any = true;
    return status == 0 ? buf_append(out, item) : status;
}

/* The mailboxes of all fields called `name` that are among the recipients, in one field. */
static int append_list(struct span header, const char *name, struct recipients *recipients,
                       struct arena *arena, struct buf *out, bool *out_any)
{
    struct field field;
    bool any = false;
    int status = 0;
    while (status == 0 && fields_next(&header, &field)) {
        struct span list = field.value;
        struct mailbox mailbox;
        if (!span_ieq(field.name, span_of(name))) {
            continue;
        }
        while (status == 0 && mailbox_next(&list, arena, &mailbox)) {
            size_t i = recipient_find(recipients, mailbox.address);
            if (i < recipients->count) {
                recipients->shown[i] = true;
                status = append_item(out, name, &any, mailbox.whole);
            }
        }
    }
    if (status == 0 && any) {
        status = buf_append(out, SPAN_LIT("\r\n"));
    }
    *out_any = any;
    return status;
}

static int append_hidden(const struct recipients *recipients, struct buf *out)
{
    bool any = false;
    int status = 0;
    for (size_t i = 0; i < recipients->count && status == 0; i++) {
        if (!recipients->shown[i]) {
            status = append_item(out, "Bcc", &any, recipients->list[i]);
        }
    }
    return status == 0 && any ? buf_append(out, SPAN_LIT("\r\n")) : status;
}

static int append_recipients(struct span header, struct recipients *recipients, struct buf *out)
{
    struct arena arena;
    bool has_to = false;
    bool has_cc = false;
    arena_init(&arena, LIST_ARENA_BYTES);
    int status = append_list(header, "To", recipients, &arena, out, &has_to);
    if (status == 0) {
        status = append_list(header, "Cc", recipients, &arena, out, &has_cc);
    }
    if (status == 0 && !has_to && !has_cc) {
        status = buf_append(out, SPAN_LIT("To: undisclosed-recipients:;\r\n"));
    }
    arena_release(&arena);
    return status == 0 ? append_hidden(recipients, out) : status;
}

int graph_message_write(const struct delivery *delivery, size_t from, size_t count,
                        struct span mailbox, struct buf *out)
{
    static const char *const dropped[] = {"To",        "Cc",        "Bcc",
                                          "Resent-To", "Resent-Cc", "Resent-Bcc"};
    struct recipients recipients = {.list = delivery->recipients + from, .count = count};
    struct buf header;
    struct span rest;
    ASSERT(count <= BATCH_RECIPIENTS_MAX);
    buf_init(&header, out->max);
    int status = hve_rewrite(delivery->body, mailbox, &header, &rest);
    if (status == 0) {
        status = append_recipients(buf_span(&header), &recipients, out);
    }
    if (status == 0) {
        status = fields_copy_without(buf_span(&header), dropped,
                                     sizeof(dropped) / sizeof(dropped[0]), out);
    }
    if (status == 0) {
        status = buf_append(out, rest);
    }
    buf_release(&header);
    return status;
}
