#include "gateway/smtp_session.h"

#include "gateway/base/failpoint.h"
#include "gateway/smtp_session_private.h"

#include <stdio.h>

/* What must stay true:
 *
 *   - the machine is asked on only from pump(), and answered either there (MAIL, RCPT, DATA) or
 * from the callback of what was started (AUTH, MESSAGE); while that runs, on_data uses nothing;
 *   - bytes shown to no avail are owed a stream_resume(): `unread`;
 *   - server->out is empty between calls: every entry from the loop ends in flush();
 *   - a session ends in session_end() alone: when the stream is closed and intake holds nothing. */

/* How long a peer that seems to wait for the answer to data it has not ended is left in doubt. */
#define PEER_WAITS_MS ((int64_t)5000)
/* Beside the message itself, intake keeps recipients, routes and the header in the submission. */
#define SUBMISSION_EXTRA_BYTES ((size_t)1 << 20)
#define SUBMISSION_RECIPIENT_BYTES ((size_t)1024)

static void session_end(struct smtp_session *s)
{
    ASSERT(s->stream == NULL && !s->submitted);
    struct smtp_server *server = s->server;
    policy_auth_cancel(&s->auth);
    const struct smtp_counts *counts = smtp_counts(s->machine);
    const char *end = smtp_end(s->machine);
    events_session(server->events, &(struct event_session){
                                       .protocol = "smtp",
                                       .peer = s->peer,
                                       .client = s->client != NULL ? s->client->conf->name : "",
                                       .helo = smtp_helo(s->machine),
                                       .tls_version = s->tls_version,
                                       .auth = s->client != NULL ? s->auth_name : "",
                                       .messages = counts->messages,
                                       .refused = counts->refused,
                                       .requests = counts->commands,
                                       .bytes_in = s->bytes_in,
                                       .duration_ms = loop_now_ms(server->loop) - s->start_ms,
                                       .end = end[0] != '\0' ? end : s->end,
                                   });
    server->held_bytes -= s->held_bytes;
    smtp_free(&s->machine);
    smtp_settings_unref(&s->settings);
    smtp_server_leave(server, s);
    mem_free(s);
}

/* ---- Output, deadlines, memory ---- */

static void account_held(struct smtp_session *s)
{
    size_t held = smtp_held_bytes(s->machine);
    s->server->held_bytes = s->server->held_bytes - s->held_bytes + held;
    bool grew = held > s->held_bytes;
    s->held_bytes = held;
    if (grew && s->server->held_bytes > s->settings->max_held_bytes && smtp_in_data(s->machine)) {
        smtp_refuse_data(s->machine, &(struct smtp_reply){
                                         .code = 452,
                                         .enhanced = "4.3.1",
                                         .text = SPAN_LIT("Too much mail at once, try again later"),
                                     });
        s->server->held_bytes -= s->held_bytes;
        s->held_bytes = 0;
    }
}

/* A command line is given its time as a whole, so that a peer cannot stay by sending a byte now and
 * then; inside DATA each silence is measured, and the whole. */
static void set_deadline(struct smtp_session *s)
{
    int64_t now_ms = loop_now_ms(s->server->loop);
    if (s->submitted || s->auth != NULL) {
        stream_deadline(s->stream, 0);
    } else if (smtp_peer_waits(s->machine)) {
        stream_deadline(s->stream, PEER_WAITS_MS);
    } else if (smtp_in_data(s->machine)) {
        int64_t left_ms = s->data_start_ms + s->settings->data_timeout_ms - now_ms;
        int64_t idle_ms = s->settings->idle_timeout_ms;
        int64_t delay_ms = left_ms < idle_ms ? left_ms : idle_ms;
        stream_deadline(s->stream, delay_ms > 0 ? delay_ms : 1);
    } else {
        stream_deadline(s->stream, s->settings->idle_timeout_ms);
    }
    s->commands_seen = smtp_counts(s->machine)->commands;
}

/* Sends what the machine said and closes when it is done. */
static void flush(struct smtp_session *s, bool closing)
{
    struct buf *out = &s->server->out;
    int rc = buf_len(out) > 0 ? stream_write(s->stream, buf_span(out)) : ERR_OK;
    buf_reset(out);
    if (rc == ERR_LIMIT || rc == ERR_NOMEM) {
        s->end = "output";
        stream_abort(s->stream);
    } else if (closing) {
        stream_close(s->stream);
    }
}

static bool machine_closed(struct smtp_session *s)
{
    struct span nothing = SPAN_LIT("");
    return smtp_end(s->machine)[0] != '\0' &&
           smtp_advance(s->machine, &nothing, &s->server->out) == SMTP_EVENT_CLOSE;
}

/* After anything that may have ended a transaction. */
static void settle(struct smtp_session *s)
{
    account_held(s);
    if (s->server->draining && smtp_is_idle(s->machine)) {
        smtp_shut(s->machine, "4.3.2", "Shutting down", "drain", &s->server->out);
    }
    bool closing = machine_closed(s);
    if (!closing) {
        set_deadline(s);
    }
    flush(s, closing);
}

/* ---- Policy ---- */

static struct smtp_reply reply_of(unsigned code, const char *enhanced, const char *text)
{
    return (struct smtp_reply){.code = code, .enhanced = enhanced, .text = span_of(text)};
}

static const struct policy_client *client_by_network(const struct smtp_session *s)
{
    const struct smtp_settings *settings = s->settings;
    if (settings->auth == SMTP_AUTH_REQUIRED) {
        return NULL;
    }
    const struct policy_client *client = policy_by_network(settings->policy, s->address);
    for (size_t i = 0; i < settings->network_count && client == NULL; i++) {
        if (policy_network_holds(&settings->networks[i], s->address)) {
            client = &settings->network_client;
        }
    }
    return client;
}

/* Whether MAIL is allowed. True and nothing written, or false and the refusal. */
static bool may_send(const struct smtp_session *s, struct smtp_reply *out)
{
    const char *why = NULL;
    enum intake_verdict ready = INTAKE_ACCEPTED;
    if (s->client == NULL && s->settings->auth != SMTP_AUTH_OFF) {
        *out = reply_of(530, "5.7.0", "Authentication required");
    } else if (s->client == NULL) {
        *out = reply_of(554, "5.7.1", "Relay access denied: your address may not send here");
    } else if ((s->client->conf->scopes & POLICY_SCOPE_SEND) == 0) {
        *out = reply_of(550, "5.7.1", "This client may not send");
    } else if (!policy_sender_allowed(s->client, smtp_transaction(s->machine)->reverse_path)) {
        *out = reply_of(553, "5.7.1", "This client may not use this sender address");
    } else if ((ready = intake_ready(s->server->intake, s->client, &why)) == INTAKE_FULL) {
        *out = reply_of(452, "4.3.1", why);
    } else if (ready != INTAKE_ACCEPTED) {
        *out = reply_of(451, "4.3.0", why);
    } else {
        return true;
    }
    return false;
}

static void answer_mail(struct smtp_session *s)
{
    struct smtp_reply refusal;
    smtp_answer(s->machine, may_send(s, &refusal) ? NULL : &refusal, &s->server->out);
}

static void answer_rcpt(struct smtp_session *s)
{
    const struct smtp_transaction *t = smtp_transaction(s->machine);
    const char *objection = intake_recipient_check(s->server->intake, s->client, t->candidate,
                                                   t->smtputf8);
    struct smtp_reply refusal = reply_of(550, "5.7.1", objection);
    smtp_answer(s->machine, objection == NULL ? NULL : &refusal, &s->server->out);
}

static void answer_data(struct smtp_session *s)
{
    bool room = s->server->held_bytes < s->settings->max_held_bytes;
    struct smtp_reply refusal = reply_of(452, "4.3.1", "Too much mail at once, try again later");
    s->data_start_ms = loop_now_ms(s->server->loop);
    smtp_answer(s->machine, room ? NULL : &refusal, &s->server->out);
}

/* ---- AUTH ---- */

static void resume_if_unread(struct smtp_session *s)
{
    if (s->unread) {
        s->unread = false;
        stream_resume(s->stream);
    }
}

static void on_auth(void *ctx, const struct policy_client *client)
{
    struct smtp_session *s = ctx;
    s->auth = NULL;
    const struct smtp_credentials *credentials = smtp_credentials(s->machine);
    events_auth(s->server->events, "smtp", s->peer, credentials->user, client != NULL);
    struct smtp_reply refusal = reply_of(535, "5.7.8", "Authentication credentials invalid");
    if (client != NULL) {
        s->client = client;
        s->authenticated = true;
        s->auth_name = credentials->mechanism;
    }
    smtp_answer(s->machine, client != NULL ? NULL : &refusal, &s->server->out);
    settle(s);
    resume_if_unread(s);
}

static void start_auth(struct smtp_session *s)
{
    const struct smtp_credentials *credentials = smtp_credentials(s->machine);
    s->auth = policy_auth_password(s->server->cache, s->settings->policy, credentials->user,
                                   credentials->password, on_auth, s);
    smtp_forget_password(s->machine);
}

/* ---- The message ---- */

/* What intake says, as RFC 5321 and RFC 3463 say it. Our own trouble is always 4xx. */
static const struct {
    unsigned code;
    const char *enhanced;
} verdict_replies[] = {
    [INTAKE_ACCEPTED] = {250, "2.0.0"},      [INTAKE_REPLAYED] = {250, "2.0.0"},
    [INTAKE_DEDUPLICATED] = {250, "2.0.0"},  [INTAKE_COLLECTED] = {250, "2.0.0"},
    [INTAKE_CONFLICT] = {554, "5.6.0"},      [INTAKE_RUNNING] = {451, "4.3.0"},
    [INTAKE_SENDER_DENIED] = {550, "5.7.1"}, [INTAKE_NO_RECIPIENT] = {554, "5.5.1"},
    [INTAKE_BAD_MESSAGE] = {554, "5.6.0"},   [INTAKE_TOO_LARGE] = {552, "5.3.4"},
    [INTAKE_FULL] = {452, "4.3.1"},          [INTAKE_UNAVAILABLE] = {451, "4.3.0"},
};

static struct smtp_reply reply_of_result(const struct intake_result *result, char *room,
                                         size_t room_bytes)
{
    const char *enhanced = verdict_replies[result->verdict].enhanced;
    unsigned code = verdict_replies[result->verdict].code;
    if (code == 250) {
        const char *what = "queued as";
        if (result->verdict == INTAKE_DEDUPLICATED) {
            what = "repeat, not sent again, of";
        } else if (result->verdict == INTAKE_COLLECTED) {
            what = "collected, to be sent as";
        }
        int len = snprintf(room, room_bytes, "Ok: %s %.*s", what, SPAN_FMT(result->id));
        ASSERT(len > 0 && (size_t)len < room_bytes);
        return reply_of(code, enhanced, room);
    }
    const char *detail = result->detail != NULL ? result->detail : "The message was not accepted";
    /* RFC 3463 has a code of its own for loops; intake has one verdict for every bad message. */
    bool loop = result->verdict == INTAKE_BAD_MESSAGE && strstr(detail, "mail loop") != NULL;
    return reply_of(code, loop ? "5.4.6" : enhanced, detail);
}

static void on_result(struct submission *submission, const struct intake_result *result)
{
    struct smtp_session *s = submission->ctx;
    char room[80 + MESSAGE_ID_MAX];
    struct smtp_reply reply = reply_of_result(result, room, sizeof room);
    FAILPOINT("smtp-before-reply");
    smtp_answer(s->machine, &reply, &s->server->out);
    arena_release(&submission->arena);
    s->submitted = false;
    if (s->stream == NULL) {
        buf_reset(&s->server->out);
        session_end(s);
        return;
    }
    settle(s);
    resume_if_unread(s);
}

/* The queue has a copy; the answer may take its time. */
static void on_message_taken(struct submission *submission)
{
    struct smtp_session *s = submission->ctx;
    smtp_forget_message(s->machine);
    account_held(s);
}

static void submit(struct smtp_session *s)
{
    const struct smtp_transaction *t = smtp_transaction(s->machine);
    s->submission = (struct submission){
        .client = s->client,
        .policy = s->settings->policy,
        .reverse_path = t->reverse_path,
        .recipients = t->recipients,
        .recipient_count = t->recipient_count,
        .message = t->message,
        .smtputf8 = t->smtputf8,
        .peer_address = s->address,
        .helo = smtp_helo(s->machine),
        .with = smtp_with(s->machine),
        .tls_version = s->tls_version,
        .on_message_taken = on_message_taken,
        .on_result = on_result,
        .ctx = s,
    };
    arena_init(&s->submission.arena, 2 * s->settings->machine.max_message_bytes +
                                         t->recipient_count * SUBMISSION_RECIPIENT_BYTES +
                                         SUBMISSION_EXTRA_BYTES);
    s->submitted = true;
    intake_submit(s->server->intake, &s->submission);
}

/* ---- The stream ---- */

static void start_tls(struct smtp_session *s)
{
    flush(s, false);
    stream_deadline(s->stream, 0); /* the handshake has the stream's own */
    if (stream_start_tls(s->stream, s->settings->tls_context, NULL) != ERR_OK) {
        s->end = "tls";
        stream_abort(s->stream);
    }
}

/* Asks the machine on until it wants bytes, waits, or is done; returns what stopped it. */
static enum smtp_event pump(struct smtp_session *s, struct span *bytes)
{
    for (;;) {
        enum smtp_event event = smtp_advance(s->machine, bytes, &s->server->out);
        switch (event) {
        case SMTP_EVENT_MAIL:
            answer_mail(s);
            break;
        case SMTP_EVENT_RCPT:
            answer_rcpt(s);
            break;
        case SMTP_EVENT_DATA:
            answer_data(s);
            break;
        case SMTP_EVENT_MESSAGE:
            submit(s);
            return event;
        case SMTP_EVENT_AUTH:
            start_auth(s);
            return event;
        case SMTP_EVENT_STARTTLS:
        case SMTP_EVENT_CLOSE:
        case SMTP_EVENT_MORE:
            return event;
        }
    }
}

static size_t on_data(void *ctx, struct span bytes)
{
    struct smtp_session *s = ctx;
    if (bytes.len == 0) {
        return 0;
    }
    if (s->submitted || s->auth != NULL || stream_above_high_water(s->stream)) {
        /* Not reading on keeps the end of file unseen too: a peer that sends everything and shuts
         * its side still gets its answers. */
        s->unread = true;
        stream_pause(s->stream);
        return 0;
    }
    struct span rest = bytes;
    enum smtp_event event = pump(s, &rest);
    s->bytes_in += bytes.len - rest.len;
    if (event == SMTP_EVENT_STARTTLS) {
        start_tls(s);
        return bytes.len;
    }
    if (event == SMTP_EVENT_CLOSE) {
        settle(s);
        return bytes.len;
    }
    bool waiting = s->submitted || s->auth != NULL;
    if (waiting && rest.len > 0) {
        s->unread = true;
        stream_pause(s->stream);
    }
    /* A part of a command line changes nothing, its deadline least of all. */
    bool progress = waiting || smtp_in_data(s->machine) || buf_len(&s->server->out) > 0 ||
                    smtp_counts(s->machine)->commands != s->commands_seen;
    if (progress) {
        settle(s);
    }
    return bytes.len - rest.len;
}

static void note_tls(struct smtp_session *s)
{
    (void)snprintf(s->tls_version, sizeof s->tls_version, "%s", stream_tls_version(s->stream));
}

static void on_open(void *ctx)
{
    struct smtp_session *s = ctx;
    note_tls(s);
    if (s->opened) {
        smtp_tls_started(s->machine);
        /* RFC 3207 4.2: what was learnt before is forgotten. */
        s->authenticated = false;
        s->client = client_by_network(s);
        s->auth_name = "network";
    } else if (s->objection != NULL) {
        smtp_shut(s->machine, "4.3.2", s->objection, "limit", &s->server->out);
    } else {
        smtp_greet(s->machine, &s->server->out);
    }
    s->opened = true;
    settle(s);
}

static void on_drain(void *ctx)
{
    struct smtp_session *s = ctx;
    if (!s->submitted && s->auth == NULL) {
        resume_if_unread(s);
    }
}

static void on_deadline(void *ctx)
{
    struct smtp_session *s = ctx;
    smtp_expire(s->machine, &s->server->out);
    settle(s);
}

static const char *end_name(int status)
{
    switch (status) {
    case ERR_CLOSED:
        return "eof";
    case ERR_TIMEOUT:
        return "timeout";
    case ERR_PROTO:
    case ERR_DENIED:
        return "tls";
    case ERR_IO:
        return "reset";
    default: /* a number, not an enum: every other status is ours */
        return "closed";
    }
}

static void on_close(void *ctx, int status, const char *why)
{
    (void)why;
    struct smtp_session *s = ctx;
    s->stream = NULL;
    if (s->end == NULL) {
        s->end = end_name(status);
    }
    policy_auth_cancel(&s->auth);
    if (!s->submitted) {
        session_end(s);
    }
}

static const struct stream_ops session_ops = {
    .on_open = on_open,
    .on_data = on_data,
    .on_drain = on_drain,
    .on_deadline = on_deadline,
    .on_close = on_close,
};

void smtp_session_drain(struct smtp_session *s)
{
    if (s->stream == NULL || s->submitted || s->auth != NULL) {
        return;
    }
    if (!s->opened) {
        s->end = "drain";
        stream_abort(s->stream);
    } else if (smtp_is_idle(s->machine)) {
        settle(s);
    }
}

void smtp_session_abort(struct smtp_session *s)
{
    if (s->stream != NULL) {
        s->end = "abort";
        stream_abort(s->stream);
    }
}

int smtp_server_accept(void *ctx, uv_stream_t *socket)
{
    struct smtp_server *server = ctx;
    struct smtp_settings *settings = server->settings;
    struct tls_context *tls = settings->tls == SMTP_TLS_IMPLICIT ? settings->tls_context : NULL;
    struct smtp_session *s = mem_zero(sizeof *s);
    int rc = stream_accept(server->loop, socket, tls, &session_ops, s, NULL, &s->stream);
    if (rc != ERR_OK) {
        mem_free(s);
        return rc;
    }
    s->server = server;
    s->settings = settings;
    settings->references++;
    s->machine = smtp_new(&settings->machine, tls != NULL);
    s->auth_name = "network";
    s->start_ms = loop_now_ms(server->loop);
    (void)snprintf(s->peer, sizeof s->peer, "%s", stream_peer(s->stream));
    (void)snprintf(s->address, sizeof s->address, "%s", stream_peer_address(s->stream));
    events_session_opened(server->events, "smtp");
    s->objection = smtp_server_enter(server, s);
    s->client = client_by_network(s);
    if (s->objection != NULL && tls != NULL) {
        /* A handshake only to say no would be the costliest thing such a peer can ask for. */
        s->end = "limit";
        stream_abort(s->stream);
    }
    return ERR_OK;
}
