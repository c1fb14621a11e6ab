use super::{expand, expand_function};
use proc_macro2::{Delimiter, Group, TokenStream, TokenTree};
use quote::quote;

/// What a handler becomes, formatted. `INSTA_UPDATE=always cargo nextest run -p idem-macros` accepts new expansions.
macro_rules! snapshots {
    ($($name:ident: #[idempotent $(($($options:tt)*))?] { $($item:tt)* })*) => {$(
        #[test]
        fn $name() -> syn::Result<()> {
            let expanded = expand(quote!($($($options)*)?), quote!($($item)*));
            let formatted = prettyplease::unparse(&syn::parse2(expanded)?);
            insta::with_settings!({ omit_expression => true }, { insta::assert_snapshot!(formatted) });
            Ok(())
        }
    )*};
}

snapshots! {
    no_arguments: #[idempotent] {
        /// Says hello.
        async fn hello() -> &'static str {
            "hello"
        }
    }

    one_argument: #[idempotent()] {
        async fn method(method: Method) -> String {
            method.to_string()
        }
    }

    an_argument_with_the_body: #[idempotent(header = "Idempotency-Key", ttl = "24h", fingerprint = body + path)] {
        pub(crate) async fn create(State(orders): State<Orders>, Json(mut new): Json<NewOrder>) -> Result<Json<Order>, AppError> {
            new.check()?;
            Ok(Json(orders.create(new).await))
        }
    }

    generics_and_where: #[idempotent] {
        #[tracing::instrument(skip_all)]
        #[must_use]
        pub async fn create<'a, R: Repo, const N: usize>(State(repo): State<R>, _: Limit<N>) -> Result<impl IntoResponse + 'a, R::Error>
        where
            R: Clone,
            R::Error: IntoResponse,
        {
            repo.create().await
        }
    }

    an_associated_function: #[idempotent(errors = Self::render)] {
        async fn create(State(this): State<Self>, #[allow(unused)] body: Bytes) {
            #![allow(clippy::todo)]
            todo!()
        }
    }

    a_scope: #[idempotent(scope = user.id)] {
        async fn pay(user: User, _: Method, Json(Payment { amount, .. }): Json<Payment>) -> Receipt {
            charge(amount).await
        }
    }

    a_scope_of_several_parts: #[idempotent(scope = (user.tenant, (user.id)))] {
        async fn pay(user: User) {}
    }

    a_plain_function: #[idempotent(engine = app.idempotency, key = order.id, scope = "ship", ttl = "7d", fingerprint = order, in_flight = wait("5s"), abandoned = rerun)] {
        /// Ships an order.
        pub(crate) async fn ship(app: App, order: OrderPaid) -> Result<Receipt, ShipError> {
            Ok(app.send(order).await?)
        }
    }

    a_key: #[idempotent(key = event.id, policy = Policy::WEBHOOK)] {
        async fn receive(event: Event) -> StatusCode {
            process(event).await
        }
    }

    a_key_and_a_scope: #[idempotent(key = order, scope = (user.id, path), required)] {
        async fn pay(user: User, Path(order): Path<String>) {}
    }

    references_beside_a_key: #[idempotent(key = id)] {
        async fn pay(ref uri: Uri, Json(Order { ref id, mut lines, note: (ref mut note, _) }): Json<Order>) {
            note.push_str(&lines.pop());
        }
    }

    references_beside_an_engine: #[idempotent(engine = app, key = id, scope = "ship")] {
        async fn ship(app: App, #[allow(unused)] Order { ref id, mut lines }: Order, ref mut note: String) -> Result<(), E> {}
    }

    a_mutable_reference: #[idempotent] {
        async fn pay(ref mut text: String) {}
    }

    a_key_beside_its_extractor: #[idempotent(key = event.id)] {
        async fn pay(key: Option<IdempotencyKey>, event: Event) {}
    }

    every_option: #[idempotent(
        crate = crate::idem,
        errors = render,
        max_response = "64KiB",
        timeout = "30s",
        abandoned = rerun,
        replay_header = none,
        replay_status = 200,
        replay = body + status,
        record = all - 400 - server_error + 503,
        mismatch = 409,
        in_flight = wait("5s"),
        scope = header("X-Tenant"),
        fingerprint = header("X-Version") + json("/b/0", "/a") + json + body + query + path + method,
        ttl = "1h 30m",
        min_key = 8,
        required,
        shadow,
        header = "X-Request-Key",
        policy = BASE,
    )] {
        async fn create(body: Bytes) {}
    }

    hidden_types: #[idempotent] {
        async fn create<'a, T, const N: usize>(_: Guard<'_>, state: RouterState) -> Result<
            (Sse<impl Stream<Item = Result<Event, T>> + Send + 'a>, Of<'a, T, 3, impl A<Item: B<T>> + C<N> + ?Sized>),
            Self::Error,
        > {
            create(state)
        }
    }

    // The bounds do not take part in inference.
    hidden_types_that_cannot_be_named: #[idempotent] {
        async fn create() -> Array<LIMIT, impl IntoResponse> {}
    }

    a_scope_and_unused_variables: #[idempotent(scope = _used)] {
        async fn create(_used: A, (_guard, B { _half, .. }): (Guard, B), mut _last: String) -> String {
            format!("{_half}")
        }
    }

    debug_handler_below: #[idempotent] {
        #[axum::debug_handler(state = App)]
        #[allow(unused)]
        async fn create(State(app): State<App>) -> Response {
            app.respond()
        }
    }

    // The function stays, with the policy of what could be read.
    wrong_options: #[idempotent(tll = "1h", ttl = "0s", required, required, mismatch = 200)] {
        async fn create(body: Bytes) {}
    }

    // The function stays as it is.
    a_wrong_item: #[idempotent(ttl = 24)] {
        fn create(&self, body: impl FromRequest) {}
    }
}

#[test]
fn hidden_types_are_stated_by_a_function_if_all_of_the_type_can_be() {
    let is_stated = |output: TokenStream| {
        let expanded = expand(quote!(), quote!(async fn create() -> #output {})).to_string();
        assert!(!expanded.contains("compile_error"), "{expanded}");
        (expanded.contains("fn __output"), expanded.contains("Item ="))
    };
    let hidden = quote!(Sse<impl Stream>);
    let grouped = TokenTree::Group(Group::new(Delimiter::None, hidden.clone()));
    for output in [hidden.clone(), quote!((#hidden)), grouped.into()] {
        assert_eq!(is_stated(output.clone()), (true, false), "{output}");
    }
    // A function has no name for what is before the `::`.
    assert_eq!(is_stated(quote!(<T as Family>::Member<impl Stream>)), (false, false));
    assert_eq!(is_stated(quote!(Sse<impl Stream<Item: Event>>)), (true, true));
    assert_eq!(is_stated(quote!(Sse<impl Lending<Item<'static>: Event>>)), (true, false));
}

#[test]
fn a_mistake_in_the_item_makes_none_of_the_scope() {
    let expanded = |scope: TokenStream| {
        expand(
            quote!(scope = #scope),
            quote!(
                struct Order;
            ),
        )
        .to_string()
    };
    assert!(!expanded(quote!(user.id)).contains("uses no argument"));
    assert!(expanded(quote!("orders")).contains("uses no argument"));
}

#[test]
fn a_function_owns_its_receiver() {
    let expanded = |receiver: TokenStream| {
        let options = quote!(engine = self.app, key = self.id, scope = "ship");
        expand_function(options, quote!(async fn ship(#receiver) -> Result<(), E> {})).to_string()
    };
    for receiver in [quote!(self), quote!(mut self), quote!(self: Arc<Self>), quote!(self: &'static Self)] {
        assert!(!expanded(receiver.clone()).contains("compile_error"), "{receiver}");
    }
    for receiver in [quote!(&self), quote!(&mut self), quote!(self: &Self)] {
        assert!(expanded(receiver.clone()).contains("cannot borrow"), "{receiver}");
    }
}

#[test]
fn a_call_that_is_no_value_of_in_flight_is_named() {
    let expanded = |value: TokenStream| {
        let options = quote!(engine = app, key = id, scope = "ship", in_flight = #value);
        expand_function(
            options,
            quote!(
                async fn ship(app: App, id: Id) -> Result<(), E> {}
            ),
        )
        .to_string()
    };
    assert!(expanded(quote!(soon("5s"))).contains("unknown value `soon`"));
    assert!(expanded(quote!(reject(409))).contains("a function has no status"));
}

#[test]
fn a_lifetime_that_is_left_out_is_static() {
    let item = quote!(
        async fn create(State(name): State<&str>, call: State<fn(&str)>) {}
    );
    let expanded = expand(quote!(), item).to_string();
    assert!(expanded.contains("State < & 'static str > :"), "{expanded}");
    assert!(expanded.contains("State < fn (& str) > :"), "those of a function are declared by it: {expanded}");
}

#[test]
fn only_a_text_is_the_name_of_a_function_as_it_is() {
    let scope = |scope: TokenStream| {
        let options = quote!(engine = app, key = id, scope = #scope);
        let expanded = expand_function(
            options,
            quote!(
                async fn ship(app: App, id: Id) -> Result<(), E> {}
            ),
        )
        .to_string();
        assert!(expanded.contains(":: idem_runtime ::") && !expanded.contains("compile_error"), "{expanded}");
        expanded.contains("once (:: idem_runtime :: private :: text")
    };
    assert!(!scope(quote!("ship")));
    assert!(scope(quote!(7)));
}

#[test]
fn a_block_that_does_not_parse_is_kept() {
    let block = quote!({ let half = ; typed(,); });
    let item: TokenStream = quote!(async fn create(body: Bytes) #block);
    let expanded = expand(quote!(), item).to_string();
    assert!(expanded.contains(&block.to_string()), "{expanded}");
    assert!(!expanded.contains("compile_error"), "{expanded}");
}

#[test]
fn a_block_in_invisible_groups_is_found() {
    let plain = quote!(
        {
            #![allow(unused)]
            body
        }
    );
    let mut grouped = plain.clone();
    for _ in 0..2 {
        grouped = TokenTree::Group(Group::new(Delimiter::None, grouped)).into();
    }
    let expanded =
        |block: TokenStream| expand(quote!(), quote!(async fn create(body: Bytes) -> Bytes #block)).to_string();
    assert_eq!(expanded(grouped), expanded(plain));
    let two = TokenTree::Group(Group::new(Delimiter::None, quote!({} {})));
    assert!(expanded(two.into()).contains("function's block in braces"));
}

#[test]
fn attributes_that_would_lose_the_arguments() {
    let expanded =
        |attribute: TokenStream| expand(quote!(), quote!(#attribute async fn create(body: Bytes) {})).to_string();
    for attribute in [
        quote!(#[utoipa::path(post, path = "/orders")]),
        quote!(#[path(post)]),
        quote!(#[tracing::instrument]),
        quote!(#[instrument(fields(length = body.len()))]),
    ] {
        assert!(expanded(attribute.clone()).contains("put it above `#[idempotent]`"), "{attribute}");
    }
    for attribute in [quote!(#[instrument(skip_all)]), quote!(#[path = "x.rs"])] {
        assert!(!expanded(attribute.clone()).contains("compile_error"), "{attribute}");
    }
}

/// Half-typed code reaches the macro on every key press in an editor.
#[test]
fn no_tokens_make_it_panic() {
    let options = quote! {
        policy header key required min_key timeout ttl fingerprint scope in_flight record replay replay_status replay_header crate
        shadow errors max_response tll = , + - * . :: ? ! | & # ; 'a "24h" "" "1MiB" "0" 422 0 -1 4.2 'c' b"x" true global none
        reject wait header json body path all success status (1) ("a", "b") () [x] {y} user.id <T> async move in crate
    };
    let items = quote! {
        #[doc = "x"] #![x] pub async fn create struct impl trait unsafe extern "C" const <T: A, const N: u8> (a: A) (&self)
        (mut a: A, B(b): B<impl C>) (...) () -> Result<(), E> impl X where T: D, { } {x} { #![y] z } ; , = idempotent
        #[debug_handler] #[idempotent] #[cfg(a)] dyn
    };
    let (options, items) = (Vec::from_iter(options), Vec::from_iter(items));
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    for _ in 0..5_000 {
        let options = random.tokens(&options, 12, 2);
        // Often a real function, so that wrong options meet a wrapper.
        let item = match random.below(4) {
            0 => random.tokens(&items, 12, 2),
            1 => quote!(
                async fn create(a: A, B(b): B) -> C {
                    b
                }
            ),
            2 => {
                let arguments = random.tokens(&items, 8, 2);
                quote!(async fn create(#arguments) { a })
            }
            _ => {
                let (generics, output) = (random.tokens(&items, 4, 1), random.tokens(&items, 4, 1));
                quote!(pub async fn create #generics (a: A) -> #output { a })
            }
        };
        drop(expand(options, item));
    }
}

/// A small generator, so that a failure comes back on every run.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 33).map_or(0, |random| random % end)
    }

    fn tokens(&mut self, words: &[TokenTree], most: usize, depth: usize) -> TokenStream {
        let count = self.below(most + 1);
        let tokens = (0..count).map(|_| match self.below(10) {
            0 if depth > 0 => {
                let delimiters = [Delimiter::Parenthesis, Delimiter::Brace, Delimiter::Bracket, Delimiter::None];
                let delimiter = delimiters[self.below(delimiters.len())];
                TokenTree::Group(Group::new(delimiter, self.tokens(words, most / 2, depth - 1)))
            }
            _ => words[self.below(words.len())].clone(),
        });
        tokens.collect()
    }
}
