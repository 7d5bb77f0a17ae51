#include "backends/hve.h"

#include "backends/backend.h"
#include "backends/smtp_pool.h"
#include "queue/fields.h"

/* ---- Identity ---- */

/* More than any header section of real mail has; a list beyond it has no display name for us. */
#define ARENA_BYTES ((size_t)256 * 1024)

/* What the old From says. Spans into the message or the arena. */
struct sender {
    struct span value;   /* as it was, with folds */
    struct span display; /* of the first mailbox */
    bool has_address;
    bool is_account; /* the account alone, so nothing needs to be said about it */
};

static struct sender sender_read(struct span value, struct span account, struct arena *arena)
{
    struct sender sender = {.value = value};
    struct span list = value;
    struct mailbox mailbox;
    if (mailbox_next(&list, arena, &mailbox)) {
        sender.display = mailbox.display;
        sender.has_address = true;
        sender.is_account = address_same(mailbox.address, account);
        if (mailbox_next(&list, arena, &mailbox)) {
            sender.is_account = false;
        }
    }
    return sender;
}

/* Characters of a phrase that needs no quotes: RFC 5322 atext, white space and folds, and the dot
 * of obs-phrase. */
static bool phrase_char(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
           (unsigned char)c > 127 || (c != '\0' && strchr("!#$%&'*+-/=?^_`{|}~ \t\r\n", c) != NULL);
}

/* Whether `display` may stand before an address as it is: words and quoted strings. A name taken
 * from a comment
 * ("a@b (Dr. No)") may hold more. */
static bool phrase_valid(struct span display)
{
    bool quoted = false;
    for (size_t i = 0; i < display.len; i++) {
        char c = display.data[i];
        if (quoted && c == '\\' && i + 1 < display.len) {
            i++;
        } else if (c == '"') {
            quoted = !quoted;
        } else if (!quoted && !phrase_char(c)) {
            return false;
        }
    }
    return !quoted;
}

static int append_quoted(struct span display, struct buf *out)
{
    int rc = buf_append_byte(out, '"');
    for (size_t i = 0; i < display.len && rc == 0; i++) {
        char c = display.data[i];
        if (c == '"' || c == '\\') {
            rc = buf_append_byte(out, '\\');
        }
        if (rc == 0) {
            rc = buf_append_byte(out, c);
        }
    }
    return rc == 0 ? buf_append_byte(out, '"') : rc;
}

/* `parts` one after the other. */
static int append_all(struct buf *out, const struct span *parts, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        int rc = buf_append(out, parts[i]);
        if (rc != 0) {
            return rc;
        }
    }
    return 0;
}

#define APPEND(out, ...)                                \
    append_all(out, (const struct span[]){__VA_ARGS__}, \
               sizeof((const struct span[]){__VA_ARGS__}) / sizeof(struct span))

static int append_from(const struct sender *sender, struct span account, struct buf *out)
{
    struct span end = SPAN_LIT(">\r\n");
    if (sender->display.len == 0) {
        return APPEND(out, SPAN_LIT("From: <"), account, end);
    }
    if (phrase_valid(sender->display)) {
        return APPEND(out, SPAN_LIT("From: "), sender->display, SPAN_LIT(" <"), account, end);
    }
    int rc = buf_append(out, SPAN_LIT("From: "));
    if (rc == 0) {
        rc = append_quoted(sender->display, out);
    }
    return rc == 0 ? APPEND(out, SPAN_LIT(" <"), account, end) : rc;
}

/* A field of that name with the value of the old From, byte for byte. */
static int append_old(const char *name, const struct sender *sender, struct buf *out)
{
    return APPEND(out, span_of(name), SPAN_LIT(":"), sender->value, SPAN_LIT("\r\n"));
}

static int append_identity(const struct sender *sender, bool has_reply_to, struct span account,
                           struct buf *out)
{
    int rc = append_from(sender, account, out);
    if (rc == 0 && !sender->is_account && sender->value.len > 0) {
        rc = append_old("X-Original-From", sender, out);
    }
    if (rc == 0 && !sender->is_account && sender->has_address && !has_reply_to) {
        rc = append_old("Reply-To", sender, out);
    }
    return rc;
}

int hve_rewrite(struct span message, struct span account, struct buf *out_header,
                struct span *out_rest)
{
    static const char *const dropped[] = {"From", "Sender"};
    struct span header;
    struct span rest;
    fields_split(message, &header, &rest);
    struct arena arena;
    arena_init(&arena, ARENA_BYTES);
    struct field from = {.whole = span_make(header.data, 0)};
    bool found = fields_find(header, SPAN_LIT("From"), &from);
    struct sender sender = sender_read(from.value, account, &arena);
    bool has_reply_to = fields_count(header, SPAN_LIT("Reply-To")) > 0;
    /* Fields before and behind the place of From; a second From (RFC 5322 allows one) is dropped
     * with the rest. */
    size_t place = found ? (size_t)(from.whole.data - header.data) : 0;
    int rc = fields_copy_without(span_make(header.data, place), dropped, 2, out_header);
    if (rc == 0) {
        rc = append_identity(&sender, has_reply_to, account, out_header);
    }
    if (rc == 0) {
        rc = fields_copy_without(span_make(header.data + place, header.len - place), dropped, 2,
                                 out_header);
    }
    arena_release(&arena);
    if (rc == 0) {
        *out_rest = rest;
    }
    return rc;
}

/* ---- The kind ---- */

#define CONNECTIONS_DEFAULT 4
#define CONNECTIONS_MAX 100

/* services.md 1.1, 1.2: STARTTLS with a verified certificate, and a sign-in per account, always. */
static int check_conf(const struct backend_conf *conf, struct err *err)
{
    if (conf->host == NULL || conf->host[0] == '\0') {
        return err_set(err, ERR_INVAL, "Backend \"%s\" needs a host.", conf->name);
    }
    if (conf->account_count == 0) {
        return err_set(err, ERR_INVAL, "Backend \"%s\" of type hve needs at least one account.",
                       conf->name);
    }
    if (conf->tls != BACKEND_TLS_STARTTLS) {
        return err_set(err, ERR_INVAL,
                       "Backend \"%s\" of type hve needs tls: starttls; the service takes nothing "
                       "else.",
                       conf->name);
    }
    if (conf->auth != BACKEND_AUTH_LOGIN) {
        return err_set(err, ERR_INVAL,
                       "Backend \"%s\": auth of an hve account must be login; xoauth2 is not "
                       "supported by this version.",
                       conf->name);
    }
    for (size_t i = 0; i < conf->account_count; i++) {
        const struct backend_account *account = &conf->accounts[i];
        if (account->user == NULL || !address_valid(span_of(account->user), false)) {
            return err_set(err, ERR_INVAL,
                           "Backend \"%s\": the user of account %zu must be the mail address of an "
                           "HVE account.",
                           conf->name, i + 1);
        }
        if (account->password == NULL) {
            return err_set(err, ERR_INVAL, "Backend \"%s\": account %s needs a password.",
                           conf->name, account->user);
        }
    }
    return 0;
}

static uint32_t connections(const struct backend_conf *conf)
{
    uint32_t wanted = conf->connections > 0 ? conf->connections : CONNECTIONS_DEFAULT;
    if (conf->concurrency > 0 && conf->concurrency < wanted) {
        wanted = conf->concurrency;
    }
    return wanted < CONNECTIONS_MAX ? wanted : CONNECTIONS_MAX;
}

static int hve_open(const struct backend_env *env, const struct backend_conf *conf,
                    struct backend **out, struct err *err)
{
    int rc = check_conf(conf, err);
    if (rc != 0) {
        return rc;
    }
    struct smtp_pool_conf pool_conf = {
        .env = env,
        .conf = conf,
        .kind = KIND_HVE,
        .connections = connections(conf),
        .prefer_login = true,
        .sender_is_account = true,
        .rewrite = hve_rewrite,
    };
    return smtp_pool_open(&pool_conf, &backend_hve_ops, out, err);
}

const struct backend_ops backend_hve_ops = {
    .type = "hve",
    .open = hve_open,
    .room = smtp_pool_room,
    .deliver = smtp_pool_deliver,
    .close = smtp_pool_close,
};
