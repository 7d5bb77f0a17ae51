#include "backends/token.h"

#include "backends/rest.h"
#include "gateway/base/codec.h"

#include <jansson.h>
#include <stdio.h>

#define TOKEN_MAX_BYTES ((size_t)32 * 1024)
#define FORM_MAX_BYTES ((size_t)16 * 1024)
#define LONG_LIFE_MS ((int64_t)30 * 60 * 1000)
#define RENEW_BEFORE_MS ((int64_t)20 * 60 * 1000)
#define UNUSABLE_BEFORE_MS ((int64_t)5 * 60 * 1000)
#define BACKOFF_FIRST_MS 1000
#define BACKOFF_MAX_MS 60000

struct token_source {
    struct loop *loop;
    struct http_client *client;
    const struct credential_conf *credential;
    const char *scope;
    char *url;
    struct buf token;      /* empty: none */
    int64_t renew_ms;      /* loop time: ask for a new one */
    int64_t unusable_ms;   /* loop time: not handed out any more */
    struct answer failure; /* of the last request */
    int64_t retry_ms;      /* loop time: no request before, after a failure */
    int64_t backoff_ms;
    struct http_request request;
    struct buf form;
    bool running;
    struct token_waiter waiters; /* head of a ring */
    struct token_waiter last;    /* marks the end of those served in this turn */
    struct loop_task task;       /* hands out what is there */
};

/* ---- Handing out ---- */

static bool token_usable(const struct token_source *source)
{
    return buf_len(&source->token) > 0 && loop_now_ms(source->loop) < source->unusable_ms;
}

static void waiter_unlink(struct token_waiter *waiter)
{
    waiter->prev->next = waiter->next;
    waiter->next->prev = waiter->prev;
    waiter->waiting = false;
}

/* Serves those who wait now; one who comes meanwhile (a callback that asks again) waits for the
 * next turn. */
static void serve_waiters(struct token_source *source)
{
    struct token_waiter *last = &source->last;
    last->prev = source->waiters.prev;
    last->next = &source->waiters;
    last->prev->next = last;
    source->waiters.prev = last;
    while (source->waiters.next != last) {
        struct token_waiter *waiter = source->waiters.next;
        waiter_unlink(waiter);
        if (token_usable(source)) {
            waiter->on_token(waiter, buf_span(&source->token), NULL);
            continue;
        }
        struct answer why = source->failure;
        int64_t left_ms = source->retry_ms - loop_now_ms(source->loop);
        why.wait_ms = left_ms > 0 ? left_ms : 1;
        waiter->on_token(waiter, span_make(NULL, 0), &why);
    }
    waiter_unlink(last);
}

static void request_token(struct token_source *source);

static void source_task(void *ctx)
{
    struct token_source *source = ctx;
    int64_t now_ms = loop_now_ms(source->loop);
    /* Without anybody who waits the HTTP client may be closed already. */
    bool asked = source->waiters.next != &source->waiters;
    bool want = asked && (buf_len(&source->token) == 0 || now_ms >= source->renew_ms);
    if (want && !source->running && now_ms >= source->retry_ms) {
        request_token(source);
    }
    if (token_usable(source) || !source->running) {
        serve_waiters(source);
    }
}

static void source_defer(struct token_source *source)
{
    loop_defer(source->loop, &source->task, LOOP_TASK_WRITE, source_task, source);
}

void token_get(struct token_source *source, struct token_waiter *waiter)
{
    ASSERT(!waiter->waiting);
    waiter->waiting = true;
    waiter->next = &source->waiters;
    waiter->prev = source->waiters.prev;
    waiter->prev->next = waiter;
    waiter->next->prev = waiter;
    source_defer(source);
}

void token_cancel(struct token_source *source, struct token_waiter *waiter)
{
    (void)source;
    if (waiter->waiting) {
        waiter_unlink(waiter);
    }
}

void token_refused(struct token_source *source, struct span token)
{
    if (span_eq(buf_span(&source->token), token)) {
        buf_release(&source->token);
    }
}

/* ---- Asking ---- */

/* Copies the token out of the answer and wipes it there: jansson does not. */
static int take_token(struct token_source *source, struct span body, int64_t *out_life_ms)
{
    json_t *json = json_loadb(body.data != NULL ? body.data : "", body.len, 0, NULL);
    json_t *token = json_object_get(json, "access_token");
    const json_t *life = json_object_get(json, "expires_in");
    uint64_t seconds = 0;
    int status = ERR_PROTO;
    if (json_is_integer(life) && json_integer_value(life) > 0) {
        seconds = (uint64_t)json_integer_value(life);
        status = 0;
    } else if (json_is_string(life)) { /* managed identities write it so (services.md 4.5) */
        status = span_to_u64(span_of(json_string_value(life)), UINT32_MAX, &seconds);
    }
    size_t len = json_string_length(token);
    if (status == 0 && len > 0 && seconds > 0 && seconds <= UINT32_MAX) {
        buf_release(&source->token);
        status = buf_append(&source->token, span_make(json_string_value(token), len));
        *out_life_ms = (int64_t)seconds * 1000;
    } else {
        status = ERR_PROTO;
    }
    if (len > 0) {
        mem_wipe((void *)(uintptr_t)json_string_value(token), len);
    }
    json_decref(json);
    return status;
}

static void note_success(struct token_source *source, int64_t life_ms)
{
    int64_t now_ms = loop_now_ms(source->loop);
    bool long_life = life_ms >= LONG_LIFE_MS;
    source->renew_ms = now_ms + (long_life ? life_ms - RENEW_BEFORE_MS : life_ms * 2 / 3);
    source->unusable_ms = now_ms + (long_life ? life_ms - UNUSABLE_BEFORE_MS : life_ms * 9 / 10);
    source->backoff_ms = 0;
    source->retry_ms = 0;
}

static void note_failure(struct token_source *source, const struct answer *answer)
{
    source->backoff_ms = source->backoff_ms == 0 ? BACKOFF_FIRST_MS : source->backoff_ms * 2;
    if (source->backoff_ms > BACKOFF_MAX_MS) {
        source->backoff_ms = BACKOFF_MAX_MS;
    }
    source->failure = *answer;
    source->failure.scope = SCOPE_BACKEND; /* without a token nobody can send */
    int64_t wait_ms = answer->wait_ms > 0 ? answer->wait_ms : source->backoff_ms;
    source->retry_ms = loop_now_ms(source->loop) + wait_ms;
}

static void on_answer(struct http_request *request, const struct http_result *result)
{
    struct token_source *source = request->ctx;
    struct answer answer;
    int64_t life_ms = 0;
    source->running = false;
    buf_release(&source->form);
    if (result->outcome == HTTP_ANSWERED && result->status == 200 &&
        take_token(source, result->body, &life_ms) == 0) {
        note_success(source, life_ms);
    } else {
        rest_answer(KIND_TOKEN, result, &answer);
        note_failure(source, &answer);
    }
    source_defer(source);
}

static int form_add(struct buf *form, const char *name, const char *value)
{
    int status = buf_printf(form, "%s%s=", buf_len(form) > 0 ? "&" : "", name);
    return status == 0 ? codec_percent_encode(span_of(value), form) : status;
}

static int form_build(struct token_source *source)
{
    const struct credential_conf *credential = source->credential;
    int status = form_add(&source->form, "client_id", credential->client_id);
    if (status == 0) {
        status = form_add(&source->form, "scope", source->scope);
    }
    if (status == 0) {
        status = form_add(&source->form, "client_secret", credential->client_secret);
    }
    return status == 0 ? form_add(&source->form, "grant_type", "client_credentials") : status;
}

static void request_token(struct token_source *source)
{
    if (form_build(source) != 0) {
        struct answer answer;
        verdict_own_answer(VERDICT_TRANSIENT, "There is no memory for a token request.", &answer);
        buf_release(&source->form);
        note_failure(source, &answer);
        return;
    }
    source->running = true;
    source->request = (struct http_request){
        .method = "POST",
        .url = source->url,
        .body = buf_span(&source->form),
        .repeatable = true,
        .ca_file = source->credential->ca_file,
        .connect_timeout_ms = 15000,
        .reply_timeout_ms = 30000,
        .on_done = on_answer,
        .ctx = source,
    };
    http_client_request_header(&source->request, SPAN_LIT("Content-Type"),
                               SPAN_LIT("application/x-www-form-urlencoded"));
    http_client_request_header(&source->request, SPAN_LIT("Accept"), SPAN_LIT("application/json"));
    http_client_send(source->client, &source->request);
}

/* ---- The source ---- */

static bool given(const char *text)
{
    return text != NULL && text[0] != '\0';
}

int token_source_new(struct loop *loop, struct http_client *client,
                     const struct credential_conf *credential, const char *scope,
                     struct token_source **out, struct err *err)
{
    if (credential == NULL) {
        return err_set(err, ERR_INVAL, "The backend needs a credential.");
    }
    if (!given(credential->tenant_id) || !given(credential->client_id) ||
        !given(credential->client_secret) || !given(credential->authority)) {
        return err_set(err, ERR_INVAL,
                       "The credential \"%s\" needs authority, tenant_id, client_id and "
                       "client_secret.",
                       credential->name);
    }
    struct span authority = span_of(credential->authority);
    while (span_ends(authority, SPAN_LIT("/"))) {
        authority.len--;
    }
    struct buf url;
    buf_init(&url, 4096);
    int status = buf_printf(&url, "%.*s/", SPAN_FMT(authority));
    if (status == 0) {
        status = codec_percent_encode(span_of(credential->tenant_id), &url);
    }
    if (status == 0) {
        status = buf_append(&url, SPAN_LIT("/oauth2/v2.0/token"));
    }
    if (status != 0) {
        buf_release(&url);
        return err_set(err, ERR_INVAL, "The authority of credential \"%s\" is too long.",
                       credential->name);
    }
    struct token_source *source = mem_zero(sizeof(*source));
    source->loop = loop;
    source->client = client;
    source->credential = credential;
    source->scope = given(credential->scope) ? credential->scope : scope;
    source->url = mem_dup(buf_span(&url));
    buf_release(&url);
    buf_init_secret(&source->token, TOKEN_MAX_BYTES);
    buf_init_secret(&source->form, FORM_MAX_BYTES);
    source->waiters.next = &source->waiters;
    source->waiters.prev = &source->waiters;
    *out = source;
    return 0;
}

void token_source_free(struct token_source **source)
{
    struct token_source *s = *source;
    *source = NULL;
    if (s == NULL) {
        return;
    }
    ASSERT(!s->running && s->waiters.next == &s->waiters);
    loop_task_cancel(&s->task);
    buf_release(&s->token);
    buf_release(&s->form);
    mem_free(s->url);
    mem_free(s);
}
