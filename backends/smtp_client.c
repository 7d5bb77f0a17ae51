#include "backends/smtp_client_internal.h"

#include <assert.h>

/* RFC 5321 4.5.3.1.4 allows 512 bytes a command, extensions add to it; BATCH_RECIPIENTS_MAX of them
 * and some. */
#define OUT_MAX ((size_t)64 * 1024)

/* ---- Ends ---- */

void smtp_client_complete(struct smtp_client *client, struct smtp_transaction *transaction)
{
    ASSERT(client->load > 0);
    client->load--;
    transaction->next = NULL;
    client->ops->on_done(client->ctx, transaction);
}

/* Ends a transaction with its session. Recipients put off to a later round were not in the content.
 */
static void lose(struct smtp_client *client, struct smtp_transaction *transaction, bool dot_written)
{
    for (size_t i = 0; i < transaction->recipient_count; i++) {
        if (transaction->marks[i] == MARK_ANSWERED) {
            continue;
        }
        bool unknown = dot_written && transaction->marks[i] == MARK_ACCEPTED;
        verdict_own_answer(unknown ? VERDICT_UNKNOWN : VERDICT_TRANSIENT, client->reason.text,
                           &transaction->answers[i]);
        transaction->answers[i].code = client->reason.code;
    }
    transaction->untried = !transaction->started;
    smtp_client_complete(client, transaction);
}

struct smtp_transaction *smtp_client_waiting_take(struct smtp_client *client)
{
    struct smtp_transaction *transaction = client->waiting;
    if (transaction != NULL) {
        client->waiting = transaction->next;
        if (client->waiting == NULL) {
            client->waiting_last = NULL;
        }
        transaction->next = NULL;
    }
    return transaction;
}

/* The session is over; client->reason says why. */
static void end_session(struct smtp_client *client)
{
    if (client->state == STATE_ENDED) {
        return;
    }
    client->state = STATE_ENDED;
    buf_release(&client->out);
    struct smtp_transaction *dot = client->dot;
    struct smtp_transaction *others[] = {client->content, client->opening};
    client->dot = NULL;
    client->content = NULL;
    client->opening = NULL;
    if (dot != NULL) {
        lose(client, dot, true);
    }
    for (size_t i = 0; i < sizeof others / sizeof *others; i++) {
        if (others[i] != NULL) {
            lose(client, others[i], false);
        }
    }
    for (struct smtp_transaction *t = smtp_client_waiting_take(client); t != NULL;
         t = smtp_client_waiting_take(client)) {
        lose(client, t, false);
    }
    ASSERT(client->load == 0);
    client->ops->on_end(client->ctx);
}

void smtp_client_end(struct smtp_client *client, enum verdict verdict, const char *text)
{
    if (client->state == STATE_ENDED) {
        return;
    }
    verdict_own_answer(verdict, text, &client->reason);
    if (verdict == VERDICT_CONFIG) {
        client->reason.scope = SCOPE_BACKEND;
    }
    end_session(client);
}

/* Ends with the reply just read. */
void smtp_client_end_refused(struct smtp_client *client, enum verdict_phase phase)
{
    if (client->state == STATE_ENDED) {
        return;
    }
    verdict_smtp_answer(client->conf->kind, phase, client->reply.code,
                        smtp_reply_text(&client->reply), &client->reason);
    if (client->reply.code < 400) {
        client->reason.verdict = VERDICT_TRANSIENT; /* a yes where none belongs */
    }
    end_session(client);
}

void smtp_client_end_protocol(struct smtp_client *client)
{
    smtp_client_end(client, VERDICT_TRANSIENT, "The server broke the SMTP protocol.");
}

/* ---- Output ---- */

void smtp_client_flush(struct smtp_client *client)
{
    if (client->state == STATE_ENDED || buf_len(&client->out) == 0) {
        return;
    }
    int rc = client->ops->write(client->ctx, buf_span(&client->out));
    if (client->load == 0) {
        buf_release(&client->out); /* idle sessions hold no buffers */
    } else {
        buf_reset(&client->out);
    }
    if (rc != 0) {
        smtp_client_end(client, VERDICT_TRANSIENT,
                        "The connection failed while it was written to.");
    }
}

void smtp_client_put(struct smtp_client *client, struct span bytes)
{
    if (client->state != STATE_ENDED && buf_append(&client->out, bytes) != 0) {
        smtp_client_end(client, VERDICT_TRANSIENT, "There is no memory for a command.");
    }
}

/* ---- The outside ---- */

struct smtp_client *smtp_client_new(const struct smtp_client_conf *conf,
                                    const struct smtp_client_ops *ops, void *ctx)
{
    static_assert(BATCH_RECIPIENTS_MAX < 250, "recipient indexes fit a byte");
    struct smtp_client *client = mem_zero(sizeof *client);
    client->conf = conf;
    client->ops = ops;
    client->ctx = ctx;
    client->state = STATE_GREETING;
    client->tls = conf->tls_already;
    buf_init(&client->out, OUT_MAX);
    return client;
}

void smtp_client_free(struct smtp_client **client)
{
    if (*client == NULL) {
        return;
    }
    ASSERT((*client)->load == 0 && !(*client)->inside);
    buf_release(&(*client)->out);
    mem_free(*client);
    *client = NULL;
}

static void on_reply(struct smtp_client *client)
{
    if (client->state == STATE_READY) {
        smtp_client_send_reply(client);
    } else if (client->state == STATE_QUIT) {
        smtp_client_end(client, VERDICT_DELIVERED, "The session was ended by QUIT.");
    } else {
        smtp_client_setup_reply(client);
    }
}

size_t smtp_client_feed(struct smtp_client *client, struct span bytes)
{
    struct span rest = bytes;
    client->inside = true;
    while (client->state != STATE_ENDED && client->state != STATE_TLS) {
        struct span line;
        if (client->reply.lines == 0) {
            smtp_reply_reset(&client->reply);
        }
        int step = smtp_reply_step(&client->reply, &rest, &line);
        if (step == SMTP_REPLY_NEED) {
            break;
        }
        if (step < 0) {
            smtp_client_end_protocol(client);
            break;
        }
        /* The first line of an EHLO reply is the server's name. */
        if (client->state == STATE_EHLO && client->reply.code == 250 && client->reply.lines > 1) {
            smtp_client_setup_extension(client, line);
        }
        if (step == SMTP_REPLY_LAST) {
            on_reply(client);
            client->reply.lines = 0;
        }
    }
    client->inside = false;
    smtp_client_send_pump(client);
    return client->state == STATE_ENDED || client->state == STATE_TLS ? bytes.len
                                                                      : bytes.len - rest.len;
}

void smtp_client_tls_done(struct smtp_client *client)
{
    if (client->state != STATE_TLS) {
        return; /* lost in between */
    }
    client->tls = true;
    smtp_client_setup_hello(client);
    smtp_client_flush(client);
}

void smtp_client_give(struct smtp_client *client, struct smtp_transaction *transaction)
{
    ASSERT(smtp_client_room(client) > 0);
    ASSERT(transaction->recipient_count > 0 &&
           transaction->recipient_count <= BATCH_RECIPIENTS_MAX);
    /* What another session has accepted died with it; what it has refused stays refused. */
    for (size_t i = 0; i < transaction->recipient_count; i++) {
        if (transaction->marks[i] != MARK_ANSWERED) {
            transaction->marks[i] = MARK_OPEN;
        }
    }
    transaction->untried = false;
    transaction->next = NULL;
    if (client->waiting_last != NULL) {
        client->waiting_last->next = transaction;
    } else {
        client->waiting = transaction;
    }
    client->waiting_last = transaction;
    client->load++;
    if (!client->inside) {
        smtp_client_send_pump(client);
    }
}

void smtp_client_pump(struct smtp_client *client)
{
    if (!client->inside) {
        smtp_client_send_pump(client);
    }
}

void smtp_client_quit(struct smtp_client *client)
{
    client->quitting = true;
    if (client->state != STATE_READY && client->state != STATE_QUIT &&
        client->state != STATE_ENDED) {
        smtp_client_end(client, VERDICT_DELIVERED, "The session was not needed any more.");
    } else {
        smtp_client_pump(client);
    }
}

void smtp_client_lost(struct smtp_client *client, const char *why)
{
    smtp_client_end(client, client->state == STATE_QUIT ? VERDICT_DELIVERED : VERDICT_TRANSIENT,
                    why);
}

size_t smtp_client_room(const struct smtp_client *client)
{
    size_t window = smtp_client_pipelines(client) ? 2 : 1;
    if (client->state != STATE_READY || client->quitting || client->load >= window) {
        return 0;
    }
    return window - client->load;
}

size_t smtp_client_load(const struct smtp_client *client)
{
    return client->load;
}

bool smtp_client_was_ready(const struct smtp_client *client)
{
    return client->was_ready;
}

bool smtp_client_ended(const struct smtp_client *client)
{
    return client->state == STATE_ENDED;
}

unsigned smtp_client_extensions(const struct smtp_client *client)
{
    return client->extensions;
}

const struct answer *smtp_client_reason(const struct smtp_client *client)
{
    return &client->reason;
}

/* RFC 5321 4.5.3.2, and the configured ceiling. */
static int64_t patience(const struct smtp_client *client, int64_t standard_ms)
{
    int64_t ceiling_ms = client->conf->reply_timeout_ms;
    return ceiling_ms > 0 && ceiling_ms < standard_ms ? ceiling_ms : standard_ms;
}

static int64_t ready_wait_ms(const struct smtp_client *client)
{
    if (client->owed_count == 0) {
        return client->content != NULL ? patience(client, 180000) : 0;
    }
    switch ((enum smtp_owed)client->owed[client->owed_first].kind) {
    case OWED_MAIL:
    case OWED_RCPT:
    case OWED_RSET:
        return patience(client, 300000);
    case OWED_DATA:
        return patience(client, 120000);
    case OWED_DOT:
    case OWED_EMPTY_DOT:
        return client->conf->reply_timeout_ms > 0 ? client->conf->reply_timeout_ms : 600000;
    }
    UNREACHABLE();
}

int64_t smtp_client_wait_ms(const struct smtp_client *client)
{
    switch (client->state) {
    case STATE_READY:
        return ready_wait_ms(client);
    case STATE_QUIT:
        return patience(client, 5000); /* nothing depends on the answer */
    case STATE_ENDED:
        return 0;
    case STATE_GREETING:
    case STATE_EHLO:
    case STATE_HELO:
    case STATE_STARTTLS:
    case STATE_TLS:
    case STATE_AUTH_LOGIN:
    case STATE_AUTH_USER:
    case STATE_AUTH_FINAL:
        return patience(client, 300000);
    }
    UNREACHABLE();
}
