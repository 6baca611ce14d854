//! How the fake API server answers.

use std::{
    collections::HashMap,
    io,
    task::{Context, Poll},
    time::Duration,
};

use axum::body::Body;
use bytes::Bytes;
use futures::{Stream, future::BoxFuture, stream};
use http::{Request, Response, StatusCode};
use http_body_util::BodyExt;
use kube::client::Body as Sent;
use nagaya_selector::Selector;
use serde_json::{Value, json};
use tokio::{sync::mpsc, time::Instant};

use super::{
    Fake,
    fields::{Owners, Refused, Writer},
    kinds::{Served, Target, decoded, discovery},
    log::{Asked, HOST},
    rules::{Asks, Effect, Verdict, status, verdict},
    store::{At, Store, Wanted, Watcher},
    watch::{self, Line, Running},
};

type BoxError = Box<dyn std::error::Error + Send + Sync>;
/// An object, or the `Status` that says why not.
type Answer = Result<Value, (u16, Value)>;

/// As the API server limits it.
const LONGEST_NAME: usize = 253;
/// A version that is not there yet is waited for.
const TOO_NEW: Duration = Duration::from_secs(3);

impl tower::Service<Request<Sent>> for Fake {
    type Response = Response<Body>;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Response<Body>, BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Sent>) -> Self::Future {
        Box::pin(self.clone().serve_request(request))
    }
}

/// A request that was read.
struct Read {
    asked: Asked,
    target: Option<Target>,
    query: HashMap<String, String>,
    accept: String,
    media: String,
}

impl Fake {
    async fn serve_request(self, request: Request<Sent>) -> Result<Response<Body>, BoxError> {
        let read = Read::of(request).await?;
        let asked = &read.asked;
        let whole = format!("{}?{}", asked.path, shown(&asked.query));
        let (number, effect) = {
            let mut store = self.store();
            let mut faults = store.faults.iter_mut();
            let effect = faults.find_map(|f| f.meets(asked, &whole));
            (store.log.enter(asked.clone()), effect)
        };
        match effect {
            Some(Effect::Answer(code, body)) => {
                self.store().log.answered(number, code);
                return Ok(response(code, body.to_string()));
            }
            Some(Effect::Never) => return std::future::pending().await,
            Some(Effect::Down) => return Err("the test lets nobody connect".into()),
            _ => (),
        }
        let answer = self.answer(&read).await;
        self.store().log.answered(number, answer.status().as_u16());
        match effect {
            Some(Effect::Late(wait)) => tokio::time::sleep(wait).await,
            Some(Effect::Lost) => return Err("the test breaks the connection".into()),
            Some(Effect::Cut(bytes)) => return Ok(cut(answer, bytes).await),
            _ => (),
        }
        Ok(answer)
    }

    async fn answer(&self, read: &Read) -> Response<Body> {
        if read.asked.path == "/readyz" {
            return response(200, "ok".to_owned());
        }
        if let Some(group) = read.asked.path.strip_prefix("/openapi/v3/apis/") {
            return response(200, openapi(&self.store().served, group).to_string());
        }
        let Some(target) = &read.target else { return refused(404, "NotFound", "no such path") };
        if target.plural.is_empty() {
            return match discovery(&self.store().served, &target.api_version) {
                Some(body) => response(200, body.to_string()),
                None => refused(404, "NotFound", "the server does not serve this group"),
            };
        }
        if let Some(answer) = self.review(read, target).await {
            return answer;
        }
        let group = target.api_version.split_once('/').map_or("", |(group, _)| group);
        let served = self.store().served(group, &target.plural).cloned();
        let Some(served) = served.filter(|served| served.kind.api_version() == target.api_version)
        else {
            return refused(404, "NotFound", "the server could not find the requested resource");
        };
        if let Err(message) = self.authorized(read, target, &served) {
            return refused(403, "Forbidden", &message);
        }
        if read.asked.method == "GET" && target.name.is_none() {
            return self.many(read, target, &served).await;
        }
        let (answer, ok) = self.one(read, target, &served);
        match answer {
            Ok(object) => response(ok, object.to_string()),
            Err((code, body)) => response(code, body.to_string()),
        }
    }

    /// Who somebody is, and what he may.
    async fn review(&self, read: &Read, target: &Target) -> Option<Response<Body>> {
        let mut body = read.asked.body.clone();
        body["status"] = match &*target.plural {
            "selfsubjectreviews" => {
                json!({ "userInfo": { "username": "system:serviceaccount:nagaya-system:nagaya" } })
            }
            "selfsubjectaccessreviews" | "subjectaccessreviews" => {
                let spec = &body["spec"];
                let of = &spec["resourceAttributes"];
                let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
                let (resource, sub) = (text(&of["resource"]), text(&of["subresource"]));
                let account = match spec["user"].as_str() {
                    Some(user) => account(user),
                    None => read.asked.account.clone(),
                };
                let asks = Asks {
                    account,
                    verb: text(&of["verb"]),
                    group: text(&of["group"]),
                    resource: if sub.is_empty() { resource } else { format!("{resource}/{sub}") },
                    namespace: text(&of["namespace"]),
                };
                let verdict = verdict(&self.store().access, &asks);
                match verdict {
                    Verdict::Fails(code) => {
                        return Some(refused(code, "InternalError", "the test says so"));
                    }
                    Verdict::Never => std::future::pending().await,
                    Verdict::Late(wait) => tokio::time::sleep(wait).await,
                    Verdict::Allowed | Verdict::Denied => (),
                }
                json!({ "allowed": verdict != Verdict::Denied })
            }
            _ => return None,
        };
        Some(response(201, body.to_string()))
    }

    /// The server's words if the account may not do this.
    fn authorized(&self, read: &Read, target: &Target, served: &Served) -> Result<(), String> {
        let sub = target.subresource.as_ref().map_or_else(String::new, |sub| format!("/{sub}"));
        let one = target.name.is_some();
        let verb = match &*read.asked.method {
            "GET" if one => "get",
            "GET" if read.is_watch() => "watch",
            "GET" => "list",
            "POST" => "create",
            "PUT" => "update",
            "PATCH" => "patch",
            _ => "delete",
        };
        let asks = Asks {
            account: read.asked.account.clone(),
            verb: verb.to_owned(),
            group: served.kind.group.clone(),
            resource: format!("{}{sub}", target.plural),
            namespace: target.namespace.clone().unwrap_or_default(),
        };
        let store = self.store();
        let may = |asks: &Asks| verdict(&store.access, asks) != Verdict::Denied;
        // An apply of an object that is not there is a creation, too.
        let creates =
            read.media.contains("apply") && store.object(&Store::at(target, served)).is_none();
        let create = Asks { verb: "create".to_owned(), ..asks.clone() };
        let missing = if !may(&asks) {
            asks
        } else if creates && sub.is_empty() && !may(&create) {
            create
        } else {
            return Ok(());
        };
        let place = match &*missing.namespace {
            "" => "at the cluster scope".to_owned(),
            namespace => format!("in the namespace \"{namespace}\""),
        };
        let user = missing.account.replace('/', ":");
        let name = target.name.as_ref().map_or_else(String::new, |name| format!(" \"{name}\""));
        Err(format!(
            "{}{name} is forbidden: User \"system:serviceaccount:{user}\" cannot {} resource \"{}\" in API group \"{}\" {place}",
            target.plural, missing.verb, missing.resource, missing.group
        ))
    }

    async fn many(&self, read: &Read, target: &Target, served: &Served) -> Response<Body> {
        let wanted = match read.wanted(target, served) {
            Ok(wanted) => wanted,
            Err(message) => return refused(400, "BadRequest", &message),
        };
        if read.is_watch() {
            self.watch(read, wanted, served).await
        } else {
            self.list(read, &wanted, served)
        }
    }

    fn list(&self, read: &Read, wanted: &Wanted, served: &Served) -> Response<Body> {
        let store = self.store();
        let (version, from) = match read.query.get("continue") {
            Some(token) => match token.split_once('.') {
                Some((version, _))
                    if version.parse::<u64>().unwrap_or_default() < store.compacted =>
                {
                    return refused(410, "Expired", "the provided continue parameter is too old");
                }
                Some((version, from)) => (version.to_owned(), from.parse().unwrap_or_default()),
                None => return refused(400, "BadRequest", "continue key is not valid"),
            },
            None => (store.version.to_string(), 0_usize),
        };
        let limit = read.query.get("limit").and_then(|text| text.parse::<usize>().ok());
        let limit = limit.filter(|limit| *limit > 0).unwrap_or(usize::MAX);
        let all = store.selected(wanted);
        let page: Vec<Value> = all
            .iter()
            .skip(from)
            .take(limit)
            .map(|(_, object)| {
                let mut object = wanted.shown((*object).clone());
                if served.is_built_in() && !wanted.metadata_only {
                    let fields = object.as_object_mut().unwrap();
                    fields.remove("apiVersion");
                    fields.remove("kind");
                }
                object
            })
            .collect();
        let mut metadata = json!({ "resourceVersion": version });
        let upto = from + page.len();
        if upto < all.len() {
            metadata["continue"] = json!(format!("{version}.{upto}"));
            metadata["remainingItemCount"] = json!(all.len() - upto);
        }
        let (kind, api_version) = if wanted.metadata_only {
            ("PartialObjectMetadataList".to_owned(), "meta.k8s.io/v1".to_owned())
        } else {
            (format!("{}List", served.kind.kind), served.kind.api_version())
        };
        let items = if page.is_empty() && store.null_items { Value::Null } else { json!(page) };
        let list = json!({ "kind": kind, "apiVersion": api_version, "metadata": metadata, "items": items });
        response(200, list.to_string())
    }

    async fn watch(&self, read: &Read, wanted: Wanted, served: &Served) -> Response<Body> {
        let initial = read.query.get("sendInitialEvents").map(String::as_str) == Some("true");
        let from = read.query.get("resourceVersion").map_or("", String::as_str);
        let from: u64 = from.parse().unwrap_or_default();
        let (sender, lines) = mpsc::unbounded_channel();
        let too_new = {
            let mut store = self.store();
            if initial && !store.watch_list {
                let message = "sendInitialEvents: Forbidden: sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled";
                return refused(422, "Invalid", message);
            }
            let now = store.told(&served.plural);
            // Without the initial state it would be silent instead.
            let too_new = initial && from > store.version;
            if initial || from == 0 {
                for (_, object) in store.selected(&wanted) {
                    let line = json!({ "type": "ADDED", "object": wanted.shown(object.clone()) });
                    let _ = sender.send(Line::Text(line.to_string()));
                }
                if initial {
                    let end = watch::bookmark(served, wanted.metadata_only, store.version, true);
                    let _ = sender.send(Line::Text(end));
                }
            } else if from < store.compacted {
                let _ = sender.send(Line::Expired);
            } else {
                let missed =
                    store.history.iter().filter(|it| it.version > from && it.version <= now);
                for line in missed.filter_map(|happened| wanted.line(happened)) {
                    let _ = sender.send(Line::Text(line));
                }
            }
            if !too_new {
                let account = read.asked.account.clone();
                // What is held back comes to who was told of the time before, as from a server that lags behind.
                let from = if initial || from == 0 { store.version } else { from };
                let wanted = wanted.clone();
                store.watchers.push(Watcher { wanted, account, from, lines: sender });
                store.log.changed();
            }
            too_new.then_some(store.version)
        };
        if let Some(current) = too_new {
            tokio::time::sleep(TOO_NEW).await;
            let message = format!("Too large resource version: {from}, current: {current}");
            let event = json!({ "type": "ERROR", "object": status(504, "Timeout", &message) });
            return response(200, format!("{event}\n"));
        }
        let seconds = read.query.get("timeoutSeconds").and_then(|text| text.parse().ok());
        let running = Running {
            api: self.clone(),
            served: served.clone(),
            lines,
            metadata_only: wanted.metadata_only,
            bookmarks: read.query.get("allowWatchBookmarks").map(String::as_str) == Some("true"),
            ends: Instant::now() + Duration::from_secs(seconds.unwrap_or(1_800)),
        };
        Response::new(streamed(watch::body(running)))
    }

    /// One object, and the code if all is well.
    fn one(&self, read: &Read, target: &Target, served: &Served) -> (Answer, u16) {
        let mut store = self.store();
        let at = Store::at(target, served);
        store.dry = read.is_dry();
        match &*read.asked.method {
            "GET" => {
                let found = store.object(&at).ok_or_else(|| not_found(&at));
                (found, 200)
            }
            "POST" => (store.create(read, at, served), 201),
            "PUT" => (store.replace(read, target, &at, served), 200),
            "PATCH" => (store.patch(read, target, &at, served), 200),
            "DELETE" => {
                let (answer, grace) = store.remove_checked(read, &at);
                if let (Ok(object), Some(grace)) = (&answer, grace) {
                    let (api, uid) = (self.clone(), object["metadata"]["uid"].clone());
                    tokio::spawn(async move {
                        tokio::time::sleep(grace).await;
                        api.store().grace_is_over(&at, &uid);
                    });
                }
                (answer, 200)
            }
            _ => (Err((405, status(405, "MethodNotAllowed", "no such method"))), 405),
        }
    }
}

impl Store {
    pub(crate) fn object(&self, at: &At) -> Option<Value> {
        self.objects.get(at).map(|(object, _)| object.clone())
    }

    fn at(target: &Target, served: &Served) -> At {
        At {
            group: served.kind.group.clone(),
            plural: served.plural.clone(),
            namespace: target.namespace.clone(),
            name: target.name.clone().unwrap_or_default(),
        }
    }

    fn create(&mut self, read: &Read, at: At, served: &Served) -> Answer {
        let mut body = read.asked.body.clone();
        let metadata = &body["metadata"];
        let name = match (metadata["name"].as_str(), metadata["generateName"].as_str()) {
            (Some(name), _) => name.to_owned(),
            (None, Some(prefix)) => self.generated(prefix),
            (None, None) => {
                return Err(invalid(
                    "metadata.name: Required value: name or generateName is required",
                ));
            }
        };
        let at = At { name, ..at };
        if at.name.is_empty() || at.name.len() > LONGEST_NAME {
            return Err(invalid(&format!("metadata.name: Invalid value: {:?}", at.name)));
        }
        if self.objects.contains_key(&at) {
            let message = format!("{} \"{}\" already exists", at.plural, at.name);
            return Err((409, status(409, "AlreadyExists", &message)));
        }
        if served.has_status {
            body.as_object_mut().unwrap().remove("status");
        }
        let mut owners = Owners::default();
        owners.update(&json!({}), &body, &read.writer("", served));
        Ok(self.put(&at, body, owners))
    }

    fn replace(&mut self, read: &Read, target: &Target, at: &At, served: &Served) -> Answer {
        let (old, owners) = self.objects.get(at).cloned().ok_or_else(|| not_found(at))?;
        let body = read.asked.body.clone();
        preconditions(at, &old, &body["metadata"])?;
        self.change(read, target, at, (old, owners, body, served))
    }

    fn patch(&mut self, read: &Read, target: &Target, at: &At, served: &Served) -> Answer {
        let body = &read.asked.body;
        let found = self.objects.get(at).cloned();
        let sub = target.subresource.as_deref().unwrap_or_default();
        if read.media.contains("apply-patch") {
            return self.apply(read, sub, at, (found, served));
        }
        let (old, owners) = found.ok_or_else(|| not_found(at))?;
        let mut new = old.clone();
        if read.media.contains("json-patch") {
            let patch: json_patch::Patch = serde_json::from_value(body.clone())
                .map_err(|error| bad_request(&error.to_string()))?;
            json_patch::patch(&mut new, &patch).map_err(|error| invalid(&error.to_string()))?;
        } else {
            let mut wanted = body["metadata"].clone();
            if !sub.is_empty() {
                wanted["uid"] = Value::Null;
            }
            preconditions(at, &old, &wanted)?;
            json_patch::merge(&mut new, body);
        }
        self.change(read, target, at, (old, owners, new, served))
    }

    /// Any write but an apply: what the path does not give is as before.
    fn change(
        &mut self,
        read: &Read,
        target: &Target,
        at: &At,
        (old, mut owners, mut new, served): (Value, Owners, Value, &Served),
    ) -> Answer {
        let sub = target.subresource.as_deref().unwrap_or_default();
        kept(&mut new, &old, sub, served.has_status);
        no_new_finalizers(&old, &new)?;
        owners.update(&old, &new, &read.writer(sub, served));
        Ok(self.put(at, new, owners))
    }

    fn apply(
        &mut self,
        read: &Read,
        sub: &str,
        at: &At,
        (found, served): (Option<(Value, Owners)>, &Served),
    ) -> Answer {
        if !read.query.contains_key("fieldManager") {
            return Err(invalid("fieldManager: Required value: is required for apply patch"));
        }
        let mut body = read.asked.body.clone();
        let uid = body["metadata"]["uid"].as_str();
        let (old, mut owners) = match (found, uid) {
            (Some((old, owners)), uid) => {
                // The status of a custom resource asks nobody for its uid.
                if sub.is_empty() && uid.is_some_and(|uid| old["metadata"]["uid"] != uid) {
                    return Err(invalid("metadata.uid: Invalid value: field is immutable"));
                }
                let version = json!({ "resourceVersion": body["metadata"]["resourceVersion"] });
                preconditions(at, &old, &version)?;
                (old, owners)
            }
            (None, _) if !sub.is_empty() => return Err(not_found(at)),
            (None, Some(uid)) => {
                let message = format!(
                    "uid mismatch: the provided object specified uid {uid}, and no existing object was found"
                );
                return Err(conflict(at, &message));
            }
            (None, None) => (json!({}), Owners::default()),
        };
        if let Some(fields) = body.as_object_mut() {
            match sub {
                "status" => fields.retain(|name, _| name == "status"),
                _ if served.has_status => drop(fields.remove("status")),
                _ => (),
            }
        }
        let mut new = old.clone();
        owners.apply(&mut new, &body, &read.writer(sub, served)).map_err(|refused| match refused {
            Refused::Conflicts(conflicts) => {
                let version = served.kind.api_version();
                let told: Vec<String> = conflicts
                    .iter()
                    .map(|(who, field)| format!("conflict with \"{who}\" using {version}: {field}"))
                    .collect();
                let count = if told.len() == 1 { "conflict" } else { "conflicts" };
                let message =
                    format!("Apply failed with {} {count}: {}", told.len(), told.join(", "));
                (409, status(409, "Conflict", &message))
            }
            Refused::Duplicate(field) => {
                let message = format!("failed to create typed patch object: errors:\n  {field}: duplicate entries for key");
                (500, status(500, "", &message))
            }
        })?;
        no_new_finalizers(&old, &new)?;
        Ok(self.put(at, new, owners))
    }

    fn remove_checked(&mut self, read: &Read, at: &At) -> (Answer, Option<Duration>) {
        let Some(object) = self.object(at) else { return (Err(not_found(at)), None) };
        if let Err(refused) = preconditions(at, &object, &read.asked.body["preconditions"]) {
            return (Err(refused), None);
        }
        let grace = self.delete(at);
        if self.dry {
            // A server shows what waits for finalizers, and otherwise that it is gone.
            let held =
                object["metadata"]["finalizers"].as_array().is_some_and(|all| !all.is_empty());
            let mut object = object;
            object["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
            let gone = json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success" });
            return (Ok(if held { object } else { gone }), None);
        }
        let answer = self.object(at).unwrap_or_else(|| {
            json!({
                "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success",
                "details": { "name": at.name, "kind": at.plural, "uid": object["metadata"]["uid"] },
            })
        });
        (Ok(answer), grace)
    }

    /// Up to which version the watches of a kind were told.
    pub(crate) fn told(&self, plural: &str) -> u64 {
        let first = self.held.get(plural).and_then(|held| held.first());
        first.map_or(self.version, |happened| happened.version - 1)
    }
}

/// What a path does not reach stays.
fn kept(new: &mut Value, old: &Value, sub: &str, has_status: bool) {
    let keep = |new: &mut Value, name: &str| match old.get(name) {
        Some(value) => new[name] = value.clone(),
        None => drop(new.as_object_mut().unwrap().remove(name)),
    };
    match sub {
        "status" => {
            let status = new.get("status").cloned();
            *new = old.clone();
            match status {
                Some(status) => new["status"] = status,
                None => drop(new.as_object_mut().unwrap().remove("status")),
            }
        }
        _ if has_status => keep(new, "status"),
        _ => (),
    }
    for field in ["deletionTimestamp", "deletionGracePeriodSeconds"] {
        match old["metadata"].get(field) {
            Some(value) => new["metadata"][field] = value.clone(),
            None => drop(new["metadata"].as_object_mut().unwrap().remove(field)),
        }
    }
}

fn no_new_finalizers(old: &Value, new: &Value) -> Result<(), (u16, Value)> {
    let of =
        |object: &Value| object["metadata"]["finalizers"].as_array().cloned().unwrap_or_default();
    let (before, after) = (of(old), of(new));
    if old["metadata"].get("deletionTimestamp").is_some()
        && after.iter().any(|name| !before.contains(name))
    {
        return Err(invalid(
            "metadata.finalizers: Forbidden: no new finalizers can be added if the object is being deleted",
        ));
    }
    Ok(())
}

fn preconditions(at: &At, object: &Value, wanted: &Value) -> Result<(), (u16, Value)> {
    let differs = |field: &str| {
        wanted
            .get(field)
            .is_some_and(|value| !value.is_null() && *value != object["metadata"][field])
    };
    if differs("uid") {
        let (wanted, found) = (&wanted["uid"], &object["metadata"]["uid"]);
        let message = format!(
            "the UID in the precondition ({wanted}) does not match the UID in record ({found}). The object might have been deleted and then recreated"
        );
        return Err((409, status(409, "Conflict", &format!("Precondition failed: {message}"))));
    }
    if differs("resourceVersion") {
        let message = "the object has been modified; please apply your changes to the latest version and try again";
        return Err(conflict(at, message));
    }
    Ok(())
}

fn conflict(at: &At, message: &str) -> (u16, Value) {
    let message =
        format!("Operation cannot be fulfilled on {} \"{}\": {message}", at.plural, at.name);
    (409, status(409, "Conflict", &message))
}

fn not_found(at: &At) -> (u16, Value) {
    (404, status(404, "NotFound", &format!("{} \"{}\" not found", at.plural, at.name)))
}

fn invalid(message: &str) -> (u16, Value) {
    (422, status(422, "Invalid", message))
}

fn bad_request(message: &str) -> (u16, Value) {
    (400, status(400, "BadRequest", message))
}

fn response(code: u16, body: String) -> Response<Body> {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = StatusCode::from_u16(code).unwrap();
    response
}

fn refused(code: u16, reason: &str, message: &str) -> Response<Body> {
    response(code, status(code, reason, message).to_string())
}

fn streamed(pieces: impl Stream<Item = Result<Bytes, io::Error>> + Send + 'static) -> Body {
    Body::from_stream(pieces)
}

/// The same answer that breaks off.
async fn cut(answer: Response<Body>, bytes: usize) -> Response<Body> {
    let (parts, body) = answer.into_parts();
    let whole = body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    let first = whole.slice(..bytes.min(whole.len()));
    let pieces = [Ok(first), Err(io::Error::other("the test breaks the connection"))];
    Response::from_parts(parts, streamed(stream::iter(pieces)))
}

/// `namespace/name` of a ServiceAccount.
fn account(user: &str) -> String {
    user.strip_prefix("system:serviceaccount:").unwrap_or(user).replace(':', "/")
}

fn shown(query: &[(String, String)]) -> String {
    query.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join("&")
}

impl Read {
    async fn of(request: Request<Sent>) -> Result<Self, BoxError> {
        let (parts, body) = request.into_parts();
        let header = |name: &str| {
            let value = parts.headers.get(name).and_then(|value| value.to_str().ok());
            value.unwrap_or_default().to_owned()
        };
        let bytes: Bytes = body.collect().await?.to_bytes();
        let query: Vec<(String, String)> = parts
            .uri
            .query()
            .unwrap_or_default()
            .split('&')
            .filter_map(|pair| pair.split_once('='))
            .map(|(key, value)| (decoded(key), decoded(value)))
            .collect();
        let path = parts.uri.path().to_owned();
        let target = Target::parse(&path);
        let body: Value = serde_json::from_slice(&bytes).unwrap_or_default();
        let user = header("impersonate-user");
        let asked = Asked {
            method: parts.method.to_string(),
            what: target.as_ref().map_or_else(|| path.clone(), |target| what(target, &body)),
            path,
            account: if user.is_empty() { HOST.to_owned() } else { account(&user) },
            user_agent: header("user-agent"),
            body,
            query: query.clone(),
            code: None,
        };
        let (accept, media) = (header("accept"), header("content-type"));
        Ok(Self { asked, target, query: query.into_iter().collect(), accept, media })
    }

    /// Whether nothing is to be stored. A deletion's options are those of its body.
    fn is_dry(&self) -> bool {
        let path = self.query.get("dryRun").map(String::as_str) == Some("All");
        let body = &self.asked.body;
        match &*self.asked.method {
            "DELETE" if !body.is_null() => body["dryRun"] == json!(["All"]),
            _ => path,
        }
    }

    fn is_watch(&self) -> bool {
        self.query.get("watch").map(String::as_str) == Some("true")
    }

    fn writer<'a>(&'a self, subresource: &'a str, served: &Served) -> Writer<'a> {
        let program = || self.asked.user_agent.split('/').next().unwrap_or_default();
        Writer {
            manager: self.query.get("fieldManager").map_or_else(program, String::as_str),
            subresource,
            force: self.query.get("force").map(String::as_str) == Some("true"),
            atomic_conditions: served.atomic_conditions,
        }
    }

    fn wanted(&self, target: &Target, served: &Served) -> Result<Wanted, String> {
        let labels = match self.query.get("labelSelector") {
            Some(text) => Some(Selector::parse(text).map_err(|error| error.to_string())?),
            None => None,
        };
        let fields = self.query.get("fieldSelector").map_or("", String::as_str);
        let field = |text: &str| {
            let (path, value) = text.split_once('=')?;
            let (path, equal) = match path.strip_suffix('!') {
                Some(path) => (path, false),
                None => (path, true),
            };
            Some((path.to_owned(), equal, value.trim_start_matches('=').to_owned()))
        };
        Ok(Wanted {
            group: served.kind.group.clone(),
            plural: served.plural.clone(),
            namespace: target.namespace.clone(),
            labels,
            fields: fields.split(',').filter_map(field).collect(),
            metadata_only: self.accept.contains("as=PartialObjectMetadata"),
        })
    }
}

/// What a request is about, as assertions show it.
fn what(target: &Target, body: &Value) -> String {
    let named = body["metadata"]["name"].as_str().map(str::to_owned);
    let name = target.name.clone().or(named);
    let place = target.namespace.clone().filter(|namespace| namespace != "demo");
    let parts = [place, Some(target.plural.clone()), name, target.subresource.clone()];
    parts.into_iter().flatten().collect::<Vec<_>>().join("/")
}

/// The part of a group's `OpenAPI` that says who takes dry runs: all of them.
fn openapi(served: &[Served], group: &str) -> Value {
    let named = served.iter().filter(|one| one.kind.api_version() == group);
    let paths = named.map(|one| {
        let path = format!("/apis/{group}/namespaces/{{namespace}}/{}/{{name}}", one.plural);
        (path, json!({ "patch": { "parameters": [{ "name": "dryRun" }] } }))
    });
    json!({ "info": { "title": "Kubernetes CRD Swagger" }, "paths": paths.collect::<serde_json::Map<_, _>>() })
}
