/* The SMTP side of heave-load: one worker is one session.
 *
 *   GREETING -> EHLO -> [STARTTLS -> EHLO] -> [AUTH] -> IDLE
 *   IDLE -> ENVELOPE (MAIL, RCPT..., DATA) -> CONTENT -> IDLE     accepted or refused after the dot
 *                                   '-> RSET -> IDLE              refused before
 *   IDLE -> QUIT -> closed
 *
 * With PIPELINING (RFC 2920) the whole envelope leaves at once and is the same bytes for every
 * message; without it each command awaits its reply. While the step is ENVELOPE, `replies` counts
 * the replies read: the first belongs to MAIL, the next ones to the recipients, the last to DATA.
 */
#include "backends/smtp_reply.h"
#include "bench/load/load.h"
#include "gateway/base/clock.h"
#include "gateway/base/codec.h"

#include <inttypes.h>
#include <unistd.h>

enum smtp_step {
    SMTP_CONNECTING,
    SMTP_GREETING,
    SMTP_EHLO,
    SMTP_STARTTLS,
    SMTP_AUTH,
    SMTP_IDLE,
    SMTP_ENVELOPE,
    SMTP_CONTENT,
    SMTP_RSET,
    SMTP_QUIT,
    SMTP_CLOSING, /* by us, after an answer that leaves nothing to say */
};

enum { QUIT_PATIENCE_MS = 2000 };

/* What all sessions send: the envelope as one text, and where its commands begin. */
struct smtp_plan {
    struct buf ehlo;
    struct buf envelope;
    size_t *commands; /* offsets; recipients + 3 of them, the last is the end */
    struct buf auth_plain;
    struct buf auth_login[2]; /* user, password */
};

struct smtp_worker {
    struct load_worker base;
    enum smtp_step step;
    struct smtp_reply reply;
    bool opened;
    bool unsettled; /* a message was given to us and has no result yet */
    bool waiting;   /* load_next() was called, and neither send nor end has come since */
    bool ending;    /* nothing comes after this session */
    bool secure;
    bool offers_pipelining, offers_starttls, offers_plain, offers_login;
    unsigned login_asked; /* 334 replies of AUTH LOGIN */
    uint64_t replies;
    uint64_t recipients; /* accepted ones of this message */
    bool content_whole;
    bool refused;       /* `kind` and `why` hold the first refusal of this message */
    bool temporary;     /* ... which may be tried again */
    bool any_temporary; /* among the refused recipients */
    char kind[TALLY_KIND_MAX];
    char why[SMTP_REPLY_TEXT_MAX + 8];
};

static const struct stream_ops STREAM_OPS;

static struct smtp_plan *plan_of(const struct smtp_worker *w)
{
    return w->base.load->plan;
}

static const struct load_options *options_of(const struct smtp_worker *w)
{
    return w->base.load->options;
}

static void say(struct smtp_worker *w, struct span bytes)
{
    if (stream_write(w->base.stream, bytes) != 0) {
        stream_abort(w->base.stream); /* on_close settles the message */
    }
}

static void set_patience(struct smtp_worker *w, int64_t ms)
{
    stream_deadline(w->base.stream, ms);
}

/* ---- Refusals ---- */

/* The enhanced status code (RFC 3463) `text` starts with; empty without one. */
static struct span enhanced_code(struct span text)
{
    struct span code = span_make(text.data, span_find(text, ' '));
    size_t dots = 0;
    for (size_t i = 0; i < code.len; i++) {
        bool digit = code.data[i] >= '0' && code.data[i] <= '9';
        dots += code.data[i] == '.' ? 1 : 0;
        if (!digit && code.data[i] != '.') {
            return span_make(text.data, 0);
        }
    }
    return dots == 2 && code.len <= 11 ? code : span_make(text.data, 0);
}

static void describe(const struct smtp_worker *w, char *kind, size_t kind_room, char *why,
                     size_t why_room)
{
    struct span text = smtp_reply_text(&w->reply);
    struct span code = enhanced_code(text);
    (void)snprintf(kind, kind_room, "%" PRIu32 "%s%.*s", w->reply.code, code.len > 0 ? " " : "",
                   SPAN_FMT(code));
    (void)snprintf(why, why_room, "%" PRIu32 " %.*s", w->reply.code, SPAN_FMT(text));
}

/* Keeps the first refusal: the later ones of a pipelined group only follow from it. */
static void note_refusal(struct smtp_worker *w)
{
    if (!w->refused) {
        w->refused = true;
        w->temporary = w->reply.code < 500;
        describe(w, w->kind, sizeof(w->kind), w->why, sizeof(w->why));
    }
}

/* A failure in our words, over whatever the server said. */
static void note_failure(struct smtp_worker *w, const char *kind, bool temporary, const char *why)
{
    w->refused = true;
    w->temporary = temporary;
    (void)snprintf(w->kind, sizeof(w->kind), "%s", kind);
    (void)snprintf(w->why, sizeof(w->why), "%s", why);
}

static void settle_refusal(struct smtp_worker *w)
{
    w->refused = false;
    w->unsettled = false;
    load_failed(&w->base,
                &(struct load_failure){.kind = w->kind, .why = w->why, .temporary = w->temporary});
}

static void go_on(struct smtp_worker *w)
{
    w->waiting = true;
    load_next(&w->base);
}

/* Ends the session; on_close settles what is in hand. */
static void hang_up(struct smtp_worker *w)
{
    w->step = SMTP_CLOSING;
    stream_abort(w->base.stream);
}

/* A session that cannot begin. What every other session would meet too ends the run, so that wrong
 * passwords are not tried a thousand times. */
static void refuse_session(struct smtp_worker *w, const char *what)
{
    char sentence[600];
    note_refusal(w);
    if (!w->temporary) {
        (void)snprintf(sentence, sizeof(sentence), "The server refuses %s: %s", what, w->why);
        load_fatal(w->base.load, sentence);
    }
    hang_up(w);
}

static void lack(struct smtp_worker *w, const char *sentence)
{
    note_failure(w, "protocol", false, sentence);
    load_fatal(w->base.load, sentence);
    hang_up(w);
}

/* ---- Messages ---- */

static void say_command(struct smtp_worker *w, uint64_t index)
{
    const struct smtp_plan *plan = plan_of(w);
    struct span all = buf_span(&plan->envelope);
    say(w, span_make(all.data + plan->commands[index],
                     plan->commands[index + 1] - plan->commands[index]));
}

static void begin_message(struct smtp_worker *w)
{
    w->step = SMTP_ENVELOPE;
    w->replies = 0;
    w->recipients = 0;
    w->refused = false;
    w->any_temporary = false;
    set_patience(w, (int64_t)options_of(w)->timeout_s * 1000);
    if (w->offers_pipelining) {
        say(w, buf_span(&plan_of(w)->envelope));
    } else {
        say_command(w, 0);
    }
}

static void say_quit(struct smtp_worker *w)
{
    w->step = SMTP_QUIT;
    set_patience(w, QUIT_PATIENCE_MS);
    say(w, SPAN_LIT("QUIT\r\n"));
}

/* The session is ready for the next message, and the worker has settled the last one. */
static void become_idle(struct smtp_worker *w)
{
    if (options_of(w)->one_per_connection) {
        say_quit(w);
        return;
    }
    w->step = SMTP_IDLE;
    set_patience(w, 0);
    go_on(w);
}

static void begin_content(struct smtp_worker *w)
{
    w->step = SMTP_CONTENT;
    if (w->recipients == 0) {
        /* RFC 2920 3.1: DATA may be answered 354 though no recipient is left; then only the dot. */
        w->content_whole = true;
        say(w, SPAN_LIT(".\r\n"));
        return;
    }
    load_content_begin(&w->base);
    w->content_whole = load_content_pump(&w->base);
}

static void give_up_message(struct smtp_worker *w)
{
    settle_refusal(w);
    w->step = SMTP_RSET;
    say(w, SPAN_LIT("RSET\r\n"));
}

static void on_data_reply(struct smtp_worker *w)
{
    if (w->recipients == 0 && !w->refused) {
        note_failure(w, "no recipient", w->any_temporary, "Every recipient was refused.");
    }
    if (w->reply.code == 354) {
        begin_content(w);
        return;
    }
    note_refusal(w);
    give_up_message(w);
}

static void on_recipient_reply(struct smtp_worker *w)
{
    if (w->reply.code / 100 == 2) {
        w->recipients++;
        return;
    }
    if (options_of(w)->recipients == 1) {
        note_refusal(w);
        return;
    }
    char kind[TALLY_KIND_MAX];
    char why[sizeof(w->why)];
    describe(w, kind, sizeof(kind), why, sizeof(why));
    w->any_temporary = w->any_temporary || w->reply.code < 500;
    if (!w->refused) {
        load_error(w->base.load, kind, why);
    }
}

static void on_envelope_reply(struct smtp_worker *w)
{
    uint64_t index = w->replies++;
    uint64_t last = options_of(w)->recipients + 1;
    if (index == last) {
        on_data_reply(w);
        return;
    }
    if (index > 0) {
        on_recipient_reply(w);
    } else if (w->reply.code / 100 != 2) {
        note_refusal(w);
    }
    if (w->offers_pipelining) {
        return;
    }
    if (index + 1 == last && w->recipients == 0 && !w->refused) {
        note_failure(w, "no recipient", w->any_temporary, "Every recipient was refused.");
    }
    if (w->refused) {
        give_up_message(w);
        return;
    }
    say_command(w, index + 1);
}

/* The id in "250 2.0.0 Ok: queued as 4bXyz". */
static struct span queue_id(struct span text)
{
    struct span mark = SPAN_LIT("queued as ");
    size_t at = span_search(text, mark);
    if (at == text.len) {
        return span_make(text.data, 0);
    }
    struct span rest = span_make(text.data + at + mark.len, text.len - at - mark.len);
    return span_make(rest.data, span_find(rest, ' '));
}

static void on_content_reply(struct smtp_worker *w)
{
    bool yes = w->reply.code / 100 == 2;
    if (yes && w->content_whole && w->recipients > 0) {
        w->unsettled = false;
        load_accepted(&w->base, w->recipients, queue_id(smtp_reply_text(&w->reply)));
        become_idle(w);
        return;
    }
    if (yes && !w->content_whole) {
        note_failure(w, "protocol", true, "The server said yes before it had the whole message.");
    }
    note_refusal(w); /* that of the recipients, if there was one, stands */
    if (!w->content_whole) {
        hang_up(w); /* the server takes what still comes for commands, or for nothing */
        return;
    }
    settle_refusal(w);
    become_idle(w);
}

/* ---- Sessions ---- */

static void say_ehlo(struct smtp_worker *w)
{
    w->step = SMTP_EHLO;
    w->offers_pipelining = false;
    w->offers_starttls = false;
    w->offers_plain = false;
    w->offers_login = false;
    say(w, buf_span(&plan_of(w)->ehlo));
}

/* One line of the EHLO reply: a keyword and its words (RFC 5321 4.1.1.1). */
static void take_keyword(struct smtp_worker *w, struct span line)
{
    struct span rest = span_trim(line);
    struct span keyword = span_cut(&rest, ' ');
    if (span_ieq(keyword, SPAN_LIT("PIPELINING"))) {
        w->offers_pipelining = !options_of(w)->no_pipelining;
    } else if (span_ieq(keyword, SPAN_LIT("STARTTLS"))) {
        w->offers_starttls = true;
    } else if (span_ieq(keyword, SPAN_LIT("AUTH"))) {
        while (rest.len > 0) {
            struct span mechanism = span_cut(&rest, ' ');
            w->offers_plain = w->offers_plain || span_ieq(mechanism, SPAN_LIT("PLAIN"));
            w->offers_login = w->offers_login || span_ieq(mechanism, SPAN_LIT("LOGIN"));
        }
    }
}

static void say_auth(struct smtp_worker *w)
{
    bool plain = w->offers_plain && !options_of(w)->auth_login;
    w->step = SMTP_AUTH;
    w->login_asked = 0;
    if (plain) {
        say(w, buf_span(&plan_of(w)->auth_plain));
    } else if (w->offers_login) {
        say(w, SPAN_LIT("AUTH LOGIN\r\n"));
    } else {
        lack(w, "The server does not offer the wanted AUTH mechanism here.");
    }
}

static void on_ehlo_reply(struct smtp_worker *w)
{
    if (w->reply.code != 250) {
        refuse_session(w, "EHLO");
    } else if (options_of(w)->tls && !w->secure) {
        if (!w->offers_starttls) {
            lack(w, "The server does not offer STARTTLS.");
            return;
        }
        w->step = SMTP_STARTTLS;
        say(w, SPAN_LIT("STARTTLS\r\n"));
    } else if (options_of(w)->auth != NULL) {
        say_auth(w);
    } else {
        begin_message(w);
    }
}

static void on_starttls_reply(struct smtp_worker *w)
{
    if (w->reply.code != 220) {
        refuse_session(w, "STARTTLS");
        return;
    }
    w->secure = true;
    if (stream_start_tls(w->base.stream, w->base.load->tls, options_of(w)->host) != 0) {
        lack(w, "TLS cannot be started for this host name.");
    }
}

static void on_auth_reply(struct smtp_worker *w)
{
    if (w->reply.code == 235) {
        begin_message(w);
    } else if (w->reply.code == 334 && w->login_asked < 2) {
        say(w, buf_span(&plan_of(w)->auth_login[w->login_asked++]));
    } else {
        refuse_session(w, "AUTH");
    }
}

static void on_reply(struct smtp_worker *w)
{
    if (w->reply.code == 421 && w->step != SMTP_QUIT) {
        /* RFC 5321 3.8: the server ends the session, whatever was asked. */
        if (w->unsettled) {
            note_refusal(w);
        }
        hang_up(w);
        return;
    }
    switch (w->step) {
    case SMTP_CONNECTING:
    case SMTP_IDLE:
    case SMTP_CLOSING:
        hang_up(w); /* it answers what nobody asked */
        break;
    case SMTP_GREETING:
        if (w->reply.code != 220) {
            refuse_session(w, "the connection");
        } else {
            say_ehlo(w);
        }
        break;
    case SMTP_EHLO:
        on_ehlo_reply(w);
        break;
    case SMTP_STARTTLS:
        on_starttls_reply(w);
        break;
    case SMTP_AUTH:
        on_auth_reply(w);
        break;
    case SMTP_ENVELOPE:
        on_envelope_reply(w);
        break;
    case SMTP_CONTENT:
        on_content_reply(w);
        break;
    case SMTP_RSET:
        become_idle(w);
        break;
    case SMTP_QUIT:
        stream_close(w->base.stream);
        break;
    }
}

/* ---- The stream ---- */

static void on_open(void *ctx)
{
    struct smtp_worker *w = ctx;
    set_patience(w, (int64_t)options_of(w)->timeout_s * 1000);
    if (w->step == SMTP_STARTTLS) {
        say_ehlo(w);
        return;
    }
    w->opened = true;
    w->step = SMTP_GREETING;
}

static size_t on_data(void *ctx, struct span bytes)
{
    struct smtp_worker *w = ctx;
    size_t all = bytes.len;
    while (bytes.len > 0) {
        struct span line;
        int rc = smtp_reply_step(&w->reply, &bytes, &line);
        if (rc == SMTP_REPLY_NEED) {
            break;
        }
        if (rc < 0) {
            if (w->unsettled) {
                note_failure(w, "protocol", true,
                             "The server sent something that is no SMTP reply.");
            }
            hang_up(w);
            return all;
        }
        if (w->step == SMTP_EHLO) {
            take_keyword(w, line);
        }
        if (rc == SMTP_REPLY_LAST) {
            enum smtp_step step = w->step;
            on_reply(w);
            smtp_reply_reset(&w->reply);
            if (w->step == SMTP_CLOSING || step == SMTP_QUIT || step == SMTP_STARTTLS) {
                return all; /* nothing after this belongs to us */
            }
        }
    }
    return all - bytes.len;
}

static void on_drain(void *ctx)
{
    struct smtp_worker *w = ctx;
    if (w->step == SMTP_CONTENT && !w->content_whole) {
        set_patience(w, (int64_t)options_of(w)->timeout_s * 1000);
        w->content_whole = load_content_pump(&w->base);
    }
}

static void on_deadline(void *ctx)
{
    struct smtp_worker *w = ctx;
    if (w->unsettled && !w->refused) {
        note_failure(w, "timeout", true, "The server did not answer in time.");
    }
    hang_up(w);
}

static void connect_session(struct smtp_worker *w);

static void on_close(void *ctx, int status, const char *why)
{
    struct smtp_worker *w = ctx;
    w->base.stream = NULL;
    if (w->ending) {
        load_worker_over(&w->base);
        return;
    }
    if (w->waiting) {
        return; /* an idle session the server ended; the next message opens another */
    }
    if (w->unsettled && w->refused) {
        settle_refusal(w);
    } else if (w->unsettled && w->step == SMTP_CLOSING) {
        connect_session(w); /* the message came while an idle session was being closed */
        return;
    } else if (w->unsettled) {
        w->unsettled = false;
        load_lost(&w->base, w->opened, status, why);
    }
    go_on(w);
}

static const struct stream_ops STREAM_OPS = {
    .on_open = on_open,
    .on_data = on_data,
    .on_drain = on_drain,
    .on_deadline = on_deadline,
    .on_close = on_close,
};

static void connect_session(struct smtp_worker *w)
{
    bool implicit = options_of(w)->tls_implicit;
    w->step = SMTP_CONNECTING;
    w->opened = false;
    w->secure = implicit;
    w->refused = false;
    smtp_reply_reset(&w->reply);
    if (!load_connect(&w->base, implicit ? w->base.load->tls : NULL, &STREAM_OPS)) {
        w->unsettled = false;
        go_on(w);
    }
}

/* ---- For the run ---- */

static void smtp_send(struct load_worker *worker)
{
    struct smtp_worker *w = (struct smtp_worker *)worker;
    w->waiting = false;
    w->unsettled = true;
    if (worker->stream == NULL) {
        connect_session(w);
    } else if (w->step == SMTP_IDLE) {
        begin_message(w);
    }
    /* Otherwise the idle session is being closed, and on_close goes on. */
}

static void smtp_end(struct load_worker *worker)
{
    struct smtp_worker *w = (struct smtp_worker *)worker;
    w->waiting = false;
    w->ending = true;
    if (worker->stream == NULL) {
        load_worker_over(worker);
    } else if (w->step == SMTP_IDLE) {
        say_quit(w);
    }
}

static int put_secret(struct buf *out, const char *before, struct span secret)
{
    int rc = buf_append(out, span_of(before));
    if (rc == 0) {
        rc = codec_base64_encode(secret, 0, out);
    }
    return rc == 0 ? buf_append(out, SPAN_LIT("\r\n")) : rc;
}

static int prepare_auth(struct smtp_plan *plan, const char *auth)
{
    struct span password = span_of(auth);
    struct span user = span_cut(&password, ':');
    struct buf plain;
    buf_init_secret(&plain, 4096);
    /* RFC 4616: [authzid] NUL authcid NUL passwd */
    int rc = buf_append_byte(&plain, '\0');
    if (rc == 0) {
        rc = buf_append(&plain, user);
    }
    if (rc == 0) {
        rc = buf_append_byte(&plain, '\0');
    }
    if (rc == 0) {
        rc = buf_append(&plain, password);
    }
    if (rc == 0) {
        rc = put_secret(&plan->auth_plain, "AUTH PLAIN ", buf_span(&plain));
    }
    buf_release(&plain);
    if (rc == 0) {
        rc = put_secret(&plan->auth_login[0], "", user);
    }
    return rc == 0 ? put_secret(&plan->auth_login[1], "", password) : rc;
}

static int prepare_envelope(struct smtp_plan *plan, const struct load_options *options)
{
    plan->commands = mem_alloc((options->recipients + 3) * sizeof(*plan->commands));
    plan->commands[0] = 0;
    int rc = buf_printf(&plan->envelope, "MAIL FROM:<%s>\r\n", options->from);
    for (uint64_t i = 1; rc == 0 && i <= options->recipients; i++) {
        plan->commands[i] = buf_len(&plan->envelope);
        rc = buf_append(&plan->envelope, SPAN_LIT("RCPT TO:<"));
        if (rc == 0) {
            rc = content_put_address(&plan->envelope, options->to, i, options->recipients);
        }
        if (rc == 0) {
            rc = buf_append(&plan->envelope, SPAN_LIT(">\r\n"));
        }
    }
    plan->commands[options->recipients + 1] = buf_len(&plan->envelope);
    if (rc == 0) {
        rc = buf_append(&plan->envelope, SPAN_LIT("DATA\r\n"));
    }
    plan->commands[options->recipients + 2] = buf_len(&plan->envelope);
    return rc;
}

/* The header of every message; only the number differs. To names the first recipient, the others
 * are in the envelope alone, as on a mailing list. */
static int prepare_header(struct load *load)
{
    const struct load_options *options = load->options;
    struct content *content = &load->content;
    struct span domain = span_of(options->from);
    (void)span_cut(&domain, '@');
    char date[CLOCK_TEXT_MAX];
    clock_rfc5322(clock_wall_ms(), date);
    int rc = buf_printf(&content->head, "From: <%s>\r\nTo: <", options->from);
    if (rc == 0) {
        rc = content_put_address(&content->head, options->to, 1, options->recipients);
    }
    if (rc == 0) {
        rc = buf_printf(&content->head, ">\r\nDate: %s\r\nSubject: Load %s, message ", date,
                        load->run);
    }
    if (rc == 0) {
        rc = content_put(content, "#\r\nMessage-ID: <#.");
    }
    if (rc == 0) {
        rc = buf_printf(&content->head, "%s@%.*s>\r\n", load->run, SPAN_FMT(domain));
    }
    return rc == 0 ? content_put(content, "MIME-Version: 1.0\r\nContent-Type: text/plain; "
                                          "charset=us-ascii\r\n\r\n")
                   : rc;
}

static int prepare_content(struct load *load)
{
    int rc = prepare_header(load);
    if (rc == 0) {
        rc = content_put_body(&load->content, load->options->size_bytes, SPAN_LIT("\r\n"), 2);
    }
    return rc == 0 ? buf_append(&load->content.rest, SPAN_LIT(".\r\n")) : rc;
}

static int smtp_prepare(struct load *load, struct err *err)
{
    const struct load_options *options = load->options;
    struct smtp_plan *plan = mem_zero(sizeof(*plan));
    load->plan = plan;
    buf_init(&plan->ehlo, 300);
    buf_init(&plan->envelope, 600 + options->recipients * 320);
    buf_init_secret(&plan->auth_plain, 8192);
    buf_init_secret(&plan->auth_login[0], 8192);
    buf_init_secret(&plan->auth_login[1], 8192);
    char host[200];
    if (gethostname(host, sizeof(host)) != 0) {
        (void)snprintf(host, sizeof(host), "localhost");
    }
    host[sizeof(host) - 1] = '\0';
    int rc = buf_printf(&plan->ehlo, "EHLO %s\r\n", host);
    if (rc == 0) {
        rc = prepare_envelope(plan, options);
    }
    if (rc == 0 && options->auth != NULL) {
        rc = prepare_auth(plan, options->auth);
    }
    if (rc == 0) {
        rc = prepare_content(load);
    }
    return rc == 0 ? 0 : err_set(err, rc, "The message cannot be prepared (%s).", err_name(rc));
}

static void smtp_release(struct load *load)
{
    struct smtp_plan *plan = load->plan;
    if (plan == NULL) {
        return;
    }
    buf_release(&plan->ehlo);
    buf_release(&plan->envelope);
    buf_release(&plan->auth_plain);
    buf_release(&plan->auth_login[0]);
    buf_release(&plan->auth_login[1]);
    mem_free(plan->commands);
    mem_free(plan);
    load->plan = NULL;
}

const struct load_ops LOAD_SMTP_OPS = {
    .worker_bytes = sizeof(struct smtp_worker),
    .prepare = smtp_prepare,
    .release = smtp_release,
    .send = smtp_send,
    .end = smtp_end,
};
