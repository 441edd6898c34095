"""Every problem code: its title and its fix. docs/problems.md is made from it, and `aiaas explain` prints it."""

from __future__ import annotations

from types import MappingProxyType
from typing import Final

from aiaas.config import codes

CODES: Final = MappingProxyType(
    {
        codes.UNREADABLE_FILE: (
            "The file cannot be read as text",
            "The path is a folder, or the file is not readable, empty, larger than 1 MiB, or not UTF-8. Give the path "
            "of a YAML file; `aiaas init` writes one to start from.",
        ),
        codes.SYNTAX: (
            "The file is not YAML",
            "The message says where the YAML parser stopped. The usual causes are a tab, a missing space after "
            "`:`, or an indentation that does not line up.",
        ),
        codes.DUPLICATE_KEY: (
            "A key appears twice in one mapping",
            "YAML parsers silently take the last value, so aiaas rejects the file. Delete one of the two keys.",
        ),
        codes.YAML_FEATURE: (
            "A part of YAML that a config may not use",
            "Custom tags, merge keys (`<<`), several documents in one file, keys that are not text, nesting "
            "beyond 40 levels and aliases that expand to more than 10,000 values are not supported.",
        ),
        codes.VARIABLE: (
            "An environment variable in the config is unset or badly written",
            "`${NAME}` takes the value of NAME. Set the variable, or write `$${NAME}` for the literal text. There is "
            "no syntax for defaults.",
        ),
        codes.PLAIN_SECRET: (
            "The file has a secret in plain text, or on a command line",
            "Configs end up in git and in ConfigMaps. Put the secret into an environment variable and write `${NAME}`. "
            "Everybody on the machine can see an engine's arguments (`ps`), also those whose values come from the "
            "environment: pass the secret in `engine.env`, such as `HF_TOKEN` instead of `--hf-token`.",
        ),
        codes.OVERRIDE_UNUSED: (
            "An override variable is set and has no effect",
            "`VLLM_BACKEND_URL`, `VLLM_TIMEOUT` and `VLLM_MAX_RETRIES` apply to the only backend, or to the backend "
            "named `vllm`. Unset the variable, or name a backend `vllm`.",
        ),
        codes.CONFIG_MAP: (
            "A Kubernetes document without a config",
            "The only Kubernetes document that aiaas accepts is a ConfigMap with `config.yaml` in its `data`.",
        ),
        codes.UNKNOWN_FIELD: (
            "A field that does not exist",
            "The field is misspelt, in the wrong section, or from another version. docs/config.md lists all fields.",
        ),
        codes.MISSING_FIELD: (
            "A required field is missing",
            "Add the field. docs/config.md says which values it takes.",
        ),
        codes.WRONG_VALUE: (
            "A value that the field does not take",
            "The message names the allowed values.",
        ),
        codes.NO_BACKEND: (
            "No backend is enabled",
            "A gateway without a backend serves nothing. Set `enabled: true` in at least one backend.",
        ),
        codes.ADDRESS: (
            "A backend needs exactly one address",
            "Give one of `url`, `urls`, `dns` and `engine`, and only one.",
        ),
        codes.BAD_URL: (
            "An address that requests cannot be sent to",
            "Write `http://host:port`; add a path only if a proxy in front of vLLM needs it. Leave out user and query, "
            "and `/v1`, which is part of each request's path. In `dns`, write `name:port`.",
        ),
        codes.MODEL_NAME_TWICE: (
            "A backend has the same model name twice",
            "Each name and alias of a backend must mean one model. Remove or rename the duplicate.",
        ),
        codes.MODEL_FALLBACK: (
            "Two backends serve the same model name (warning)",
            "This is how you write a fallback: aiaas uses the first backend in the file, and the next one when the "
            "first has no healthy endpoint. If the backends serve two different models, rename one of the models.",
        ),
        codes.ENDPOINT_PATH: (
            "A path that aiaas does not serve, or one listed twice",
            "aiaas serves only paths that it can guard; vLLM has other paths that must not be reachable from outside.",
        ),
        codes.PORT_CLASH: (
            "Two listeners on one port",
            "Give each listener its own port: `server.port`, `monitoring.metrics_port`, `monitoring.admin_port` and "
            "every engine.",
        ),
        codes.BAD_NETWORK: (
            "Not a network",
            "Write CIDR, such as `10.0.0.0/8` or `fd00::/8`; a single address works too.",
        ),
        codes.AUTH_OFF: (
            "Authentication is off (warning)",
            "Anybody who can reach the port may use the models. This is fine on your own machine, not on a network.",
        ),
        codes.HEARTBEAT: (
            "The heartbeat is too long to have an effect (warning)",
            "The heartbeat is not shorter than the backend's `timeout`, so a stream ends before the first comment. "
            "Shorten it.",
        ),
        codes.BURST_ALONE: (
            "A burst without a rate",
            "`burst` is the size of the bucket that `requests_per_minute` fills. Set the rate, or remove the burst.",
        ),
        codes.TOKEN_BOUNDS: (
            "Token bounds that contradict each other",
            "`default_output_tokens` may not exceed `max_output_tokens`, and one answer may not exceed a key's "
            "`tokens_per_minute`.",
        ),
        codes.BACKEND_KEY: (
            "A backend's secret is missing or cannot be used",
            "`api_key_env` or `isolate_cache_secret_env` names a variable that is unset, cannot be sent in a header, "
            "or is too short. Set it in the environment of `aiaas serve`.",
        ),
        codes.ENGINE_MODELS: (
            "One engine serves one model",
            "An engine is one vLLM process. Give each model a backend of its own; aliases of that model are fine.",
        ),
        codes.ENGINE_ARGS: (
            "An argument that aiaas sets itself",
            "The engine's address and model name come from the config's own fields.",
        ),
        codes.FORWARD_HEADER: (
            "A header that must not be forwarded",
            "aiaas does not forward headers that frame the message, carry the client's key or are set by aiaas.",
        ),
        codes.TIMEOUT_ORDER: (
            "A timeout that another timeout makes useless (warning)",
            "The outer timeout must be longer than the inner one.",
        ),
        codes.STORE_URL: (
            "An address of the shared store that cannot be used",
            "Write `redis://host:6379/0`, `redis+sentinel://host:26379,host:26379/NAME` or "
            "`redis+cluster://host:6379,host:6379`, with `rediss` for TLS, and `:${NAME}@` in front of the hosts for a "
            "password from the environment; `?ssl_ca_certs=FILE` names your own certificate authorities.",
        ),
        codes.COUNTED_APART: (
            "A bound that each worker or replica counts separately (warning)",
            "With `store: memory` every worker of every replica counts a key's requests and tokens separately, so a "
            "key can use its limits once per worker. `max_inflight` is divided between the workers, but each worker "
            "gets at least 1.",
        ),
        codes.TRUSTED_ANYBODY: (
            "Practically everybody is a trusted proxy (warning)",
            "aiaas believes `X-Forwarded-For` and `X-Request-Id` from `server.trusted_proxies`. With a network such as "
            "0.0.0.0/0 any client can fake its address and request ids, evade limits by address and forge the log. "
            "Write the networks of the proxies in front of the gateway.",
        ),
        codes.ENDLESS_PATIENCE: (
            "A client can hold a connection for very long (warning)",
            "`server.header_timeout` and `server.body_timeout` end clients that send slowly or not at all. Above 5 "
            "minutes (`server.body_total_timeout`: 1 hour) a few machines can hold all connections.",
        ),
        codes.ANY_ORIGIN: (
            "Any web page may call (warning)",
            "With `*` in `server.cors.allow_origins` a page of any site may use a key that its visitor enters there. "
            "Write the origins of your own pages.",
        ),
        codes.MEDIA_FETCHED: (
            "vLLM fetches addresses that clients choose (warning)",
            "With `request.media_urls: allow` a client can make vLLM fetch any address, also inside the cluster "
            "(metadata servers, dashboards). Write `deny`, so that clients send media as `data:` URLs, or start vLLM "
            "with `--allowed-media-domains` and let a NetworkPolicy block its outgoing traffic.",
        ),
        codes.CONNECTIONS_OF_ONE: (
            "One client can take all connections (warning)",
            "With `server.tls` and without an ingress, clients connect directly to the gateway. "
            "`server.max_connections_per_address` bounds the connections of one address: an office behind one address "
            "needs a few for each user, a single client one for each request that it sends at once. Leave it unset "
            "behind an ingress, or behind a load balancer that hides the addresses.",
        ),
        codes.ACCEPT: (
            "An accepted warning that is none, has no reason, or does not occur",
            "`accept: {AIA219: the reason}` lets a warning stay. Errors have to be fixed. Remove an entry whose "
            "warning no longer occurs: otherwise it would hide the next one.",
        ),
        codes.COLLECTOR: (
            "Traces cannot be exported",
            "`monitoring.traces.endpoint` is the URL of an OpenTelemetry collector that takes OTLP over HTTP, without "
            "`/v1/traces` (usual port: 4318; 4317 is that of gRPC, which aiaas does not speak). `headers` are further "
            "headers for it; aiaas itself writes those that frame the request.",
        ),
        codes.ALL_DRAIN: (
            "All replicas of a backend drain (warning)",
            "New requests get 503, unless another backend serves the model. Keep one replica without `drain`.",
        ),
        codes.RESUME: (
            "Streams that cannot go on although `resume` is on (warning)",
            "Name at least two endpoints (a headless Service as `dns`); `health.silent_after` is below `timeout`.",
        ),
        codes.BACKEND_TLS: (
            "`tls` at a backend without TLS",
            "Nothing is verified, as its address is not `https://`. Write `https://`, or remove `tls`.",
        ),
        codes.KEYS_FILE: (
            "The key file is missing, or has no keys (warning)",
            "`aiaas serve` starts, and rejects every request until the key file exists. `aiaas keys create NAME` "
            "creates it. `aiaas render` makes a Secret of the file: it leaves that out if the file is missing. With "
            "a file without keys the Secret would replace one that has keys. If another tool keeps the Secret, set "
            "`keys_secret: {create: false}`.",
        ),
        codes.KEYS_UNREADABLE: (
            "The key file cannot be used",
            "The file cannot be read, or it is not a complete key file. A running `aiaas serve` keeps the last good "
            "keys in force; it does not start with this file (exit code 3). Restore the file, or fix the named line.",
        ),
        codes.WEAK_KEY: (
            "A key that can be guessed (warning)",
            "The key was imported with `--weak`. Anybody who sees its hash can find the key by guessing. Create a new "
            "key with `aiaas keys create`, hand it out, and revoke this one.",
        ),
        codes.KEY_SCOPE: (
            "A key names a model that is not served, or an unknown request field",
            "A renamed or removed model silently breaks such a key: write the model's current name into the key's "
            "`models`, or give the model its old name as an alias. A wrong name in `allow_fields` allows nothing.",
        ),
        codes.NOT_DEPLOYABLE: (
            "This config cannot be rendered as manifests",
            "The config runs here, but in a cluster something would be missing or unreachable: a public host name or "
            "a Gateway, TLS on a port that faces the internet, a Secret for each `${NAME}` (`kubernetes.env`), an "
            "address and a port that a pod can listen on.",
        ),
        codes.TLS_FILES: (
            "The certificate or its key cannot be used",
            "A file of `server.tls`, `backends.X.tls` or `rate_limit.store` is missing, not readable or not PEM, or "
            "certificate and key do not belong together. `aiaas serve` does not start with such files; a running "
            "gateway keeps the last good ones in force.",
        ),
        codes.TLS_VALIDITY: (
            "The certificate has expired or soon will (warning)",
            "Clients reject an expired certificate; aiaas rejects a backend if the authority (`ca_file`) has expired. "
            "Renew one two weeks before it expires (a short-lived certificate: when a quarter of its life is left). "
            "aiaas loads the renewed file without a restart.",
        ),
        codes.UNUSED_VARIABLE: (
            "A variable of `kubernetes.env` that nothing uses (warning)",
            "Only variables that the config names (`${NAME}`, `api_key_env`) are rendered. Remove the entry, or "
            "correct its name.",
        ),
        codes.PATCH: (
            "A patch or an extra object that cannot be used",
            "A patch of `kubernetes.patches` names an object that is not rendered, cannot be merged, or takes away "
            "what the gateway relies on: probes, preStop and the time for it, selectors, the mounted config and keys. "
            "Where the config has a field for it, use that. Objects of `kubernetes.extra` need `apiVersion`, `kind` "
            "and a name of their own. docs/manifests.md says how patches merge.",
        ),
        codes.HOP_TIMEOUT: (
            "A hop gives up before the one behind it",
            "Timeouts must grow outwards: vLLM, gateway, ingress, client. A hop that gives up too early answers with "
            "its own HTML, and the engine goes on working for nobody. `aiaas validate` shows the chain; the gateway's "
            "time is the wait in the queue, the failed connections, then `timeout`; each retry (`max_retries`) adds "
            "another attempt. Let aiaas derive the ingress's timeouts, or raise them; shorten `timeout` or "
            "`queue.max_wait` if clients would give up first.",
        ),
        codes.HOP_BODY: (
            "A hop rejects bodies that the gateway would accept",
            "The ingress answers 413 with an HTML page, although the gateway would serve the request. Remove the "
            "annotation; aiaas then sets it above `server.max_body_size`, or `max_upload_size` where files are taken.",
        ),
        codes.IDLE_TIMER: (
            "A load balancer cuts silent streams (warning)",
            "Load balancers close a connection that is silent for a minute. The heartbeat writes a comment, which "
            "clients ignore, into a silent stream. Keep the heartbeat on, well below 60 s.",
        ),
        codes.DRAIN: (
            "A rollout cuts requests that it should let finish (warning)",
            "A pod that shuts down finishes its requests within `drain_timeout`, and the cluster waits for the grace "
            "period, which aiaas derives from it. The cluster autoscaler caps the grace period at ten minutes.",
        ),
        codes.REPLICAS: (
            "Numbers of replicas that do not work",
            "`min` must not exceed `max`; with one replica, each drained node is an outage. An autoscaler needs a CPU "
            "request to compare with.",
        ),
        codes.WORKERS: (
            "More workers than the pod has room for (warning)",
            "Each worker is a process that uses up to one core and, under load, 100 MiB (including two slow hashes of "
            "19 MiB) plus the budget of large bodies (eight times `server.max_body_size`, at least 64 MiB). Prefer "
            "replicas to workers.",
        ),
        codes.ENGINE_START: (
            "A loading engine would be killed (warning)",
            "The startup probe gives an engine `engine.start_timeout`; after that the kubelet restarts it from the "
            "beginning, again and again. The first start downloads the weights, and later starts still take minutes.",
        ),
        codes.CONTEXT: (
            "More output tokens than the engine's context holds (warning)",
            "aiaas writes `max_output_tokens` and `default_output_tokens` into requests without a bound, and vLLM "
            "rejects requests that do not fit into `max-model-len`. Leave room for the prompt, too.",
        ),
        codes.POLICY: (
            "The NetworkPolicy blocks needed traffic, or allows too much",
            "Prometheus must reach the metrics port, and the pods of an ingress or a Gateway must reach the gateway's "
            "port; set the namespaces of both in the config. Without a policy every pod can read the metrics.",
        ),
        codes.INGRESS_RETIRED: (
            "A retired ingress controller (warning)",
            "ingress-nginx was retired in March 2026 and gets no security fixes. Another controller needs its `class` "
            "and `controller_namespace`; aiaas derives its annotations from the class or from `controller`. Or "
            "attach to a Gateway (`expose: gateway`).",
        ),
        codes.PLAIN_HTTP: (
            "Keys cross the network in the clear",
            "A client that calls `http://` by mistake must be redirected to HTTPS, so that its key does not go over "
            "plain HTTP again. Leave the redirect on; name the Gateway's listener that has TLS.",
        ),
        codes.IMAGE_TAG: (
            "An image that is not named, or whose tag does not pin a version (warning)",
            "Without `kubernetes.image` the pods run an image that no registry has. "
            "An image with the tag `latest`, or without a tag, can differ from pod to pod, and a rollback does not "
            "restore the old image. Name a version, or better a digest (`image@sha256:...`).",
        ),
        codes.CLIENT_ADDRESS: (
            "All clients have the ingress's address (warning)",
            "Without keys the limits apply to each client address. Behind an ingress the address is in "
            "`X-Forwarded-For`, which aiaas believes only from `server.trusted_proxies`: write the network of the "
            "ingress's pods there.",
        ),
        codes.USAGE_IN_POD: (
            "Usage that is lost with the pod (warning)",
            "`monitoring.usage_file` is a file on the disk of one pod. In a cluster, count in the shared store: set "
            "`rate_limit.store: redis://...`, and leave `usage_file` out.",
        ),
        codes.CONFIG_NAME: (
            "A rollback without its config (warning)",
            "With `immutable_config: false` the ConfigMap keeps its name, so `kubectl rollout undo` starts the old "
            "pods with the new config. That is fine if GitOps rolls back both.",
        ),
        codes.KEYS_SIZE: (
            "The keys are too many for a Secret",
            "A Secret holds at most 1 MiB. From 190 KiB on, apply with `kubectl apply --server-side`: the client-side "
            "apply keeps a copy in an annotation, which holds 256 KiB in base64. For larger files see docs/keys.md.",
        ),
        codes.REQUEST_ABOVE_LIMIT: (
            "A pod asks for more than it may have",
            "The API server rejects a Deployment whose requests exceed its limits. If you set only `requests`, the "
            "default limits still apply, so raise both.",
        ),
        codes.INGRESS_HARM: (
            "An annotation of the Ingress that does harm",
            "Some settings suit web pages and not generations: `non_idempotent` makes the controller send a request "
            "again that vLLM already works on; a rewritten path is not the gateway's; the controller's own limits "
            "answer with HTML and without `Retry-After`. Remove the annotation.",
        ),
        codes.INGRESS_CONTROLLER: (
            "The class and the controller of the Ingress disagree (warning)",
            "Each controller reads annotations of its own and ignores all others. Name the program that serves the "
            "class in `ingress.controller`, or leave that out where the class says it.",
        ),
        codes.CONNECTION_MEMORY: (
            "More connections than the pod has memory for (warning)",
            "A connection takes 12 KiB, with TLS 56 KiB, besides the 100 MiB of a worker and the budget of large "
            "bodies. If clients open all connections, the pod is killed: lower `server.max_connections`, or raise the "
            "memory limit.",
        ),
        codes.ENGINE_POD: (
            "An engine that does not fit into its pod",
            "vLLM does not start with fewer GPUs than it splits the model over (`tensor-parallel-size` times "
            "`pipeline-parallel-size` times `data-parallel-size`); leave these arguments out, and aiaas sets the first "
            "to `engine.pod.gpus`. Shared memory counts as memory of the pod.",
        ),
        codes.BACKEND_AWAY: (
            "A backend cannot be reached from here",
            "`aiaas validate --connect` found this on the machine where it runs: names of a cluster do not resolve "
            "outside the cluster. The message gives the connection's error.",
        ),
        codes.NO_MODEL_LIST: (
            "An address does not list its models",
            "`aiaas validate --connect` found this. The server is not vLLM, it expects another key (`api_key_env`), or "
            "the URL needs another path.",
        ),
        codes.MODELS_DISAGREE: (
            "A backend serves other models than the config says",
            "`aiaas validate --connect` found this; a running gateway logs it as `models_disagree`. A model that the "
            "backend does not serve is an error. An alias that the backend serves as a model of its own (a LoRA "
            "adapter in the short form of `models`) is a warning: requests for the alias go to that model. Give the "
            "model an entry of its own.",
        ),
        codes.SCHEDULING: (
            "A backend does not take the priority of requests",
            "`aiaas validate --connect` found this, with one request of one token to each address. With "
            "`scheduling: priority` aiaas writes `priority` into every request. A vLLM before 0.10 without "
            "`--scheduling-policy priority` refuses such requests: start it with that option, or write "
            "`scheduling: fcfs`. Later versions without the option ignore the field. It is a warning where the engine "
            "gave another answer, which the message has.",
        ),
        codes.STORE_AWAY: (
            "The shared store cannot be reached from here",
            "`aiaas validate --connect` found this on the machine where it runs: names of a cluster do not resolve "
            "outside the cluster. The message has the connection's error, or the store's answer to user and password.",
        ),
    }
)
